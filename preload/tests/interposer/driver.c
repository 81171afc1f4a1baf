/* A driver for tests: small, strict, and talkative.
 *
 * Every call appends a line to $DUMMY_LOG. Streams are busy for as long as the kernels launched on
 * them say (gridDimX milliseconds; 0xffffffff: until a memset comes). Destroyed handles that are
 * used, and questions that would spoil a capture, are logged as FAULT.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef int R;
typedef uint64_t ptr;
enum { OK = 0, INVALID = 1, OOM = 2, NOINIT = 3, NOCTX = 201, HANDLE = 400, NOTFOUND = 500, NOTREADY = 600, CAPTURE = 900 };

static void say(const char *format, ...) {
    char line[256];
    va_list list;
    va_start(list, format);
    int n = vsnprintf(line, sizeof line - 1, format, list);
    va_end(list);
    line[n++] = '\n';
    const char *path = getenv("DUMMY_LOG");
    int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (fd >= 0) {
        if (write(fd, line, n) != n) abort();
        close(fd);
    }
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

struct context { int magic, device; int64_t busy; };
struct stream { int magic; struct context *context; int capturing; int64_t busy; };
static struct context primary;
static int primary_users;
static __thread struct context *stack[16];
static __thread int depth;
static volatile int endless, capturing, initialised;
static pid_t owner;
static uint64_t used;

static struct context *current(void) { return depth ? stack[depth - 1] : 0; }
static int64_t *busy(void *s) {
    if ((uintptr_t)s <= 2) return current() ? &current()->busy : 0;
    struct stream *stream = s;
    if (stream->magic != 77) { say("FAULT destroyed stream used"); return 0; }
    return &stream->busy;
}
static R ready(void) { return !initialised || owner != getpid() ? NOINIT : OK; }

R cuInit(unsigned flags) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES"), *fail = getenv("DUMMY_INIT");
    say("cuInit %u %s", flags, visible ? visible : "-");
    if (fail) return atoi(fail);
    initialised = 1;
    owner = getpid();
    return OK;
}
R cuDriverGetVersion(int *v) { *v = getenv("DUMMY_VERSION") ? atoi(getenv("DUMMY_VERSION")) : 12090; return OK; }
R cuGetErrorName(int e, const char **s) { *s = "CUDA_ERROR_OF_TESTS"; return OK; }
R cuGetErrorString(int e, const char **s) { *s = "an error of tests"; return OK; }
R cuDeviceGetCount(int *n) { if (ready()) return ready(); *n = 1; return OK; }
R cuDeviceGet(int *d, int n) { if (ready()) return ready(); *d = n; return OK; }
R cuCtxCreate_v2(struct context **c, unsigned f, int d) {
    *c = calloc(1, sizeof **c); (*c)->magic = 55; (*c)->device = d; stack[depth++] = *c; say("cuCtxCreate"); return OK;
}
R cuStreamQuery(struct stream *s);
R cuCtxDestroy_v2(struct context *c) {
    if (!c || c->magic != 55) return NOCTX;
    say("context goes");
    while (c->busy > now()) usleep(100);
    c->magic = 0; if (current() == c) depth--; say("cuCtxDestroy"); return OK;
}
R cuCtxSetCurrent(struct context *c) { if (!depth) depth = 1; stack[depth - 1] = c; return OK; }
R cuCtxGetCurrent(struct context **c) { *c = current(); return OK; }
R cuCtxPushCurrent_v2(struct context *c) {
    if (c->magic != 55) { say("FAULT destroyed context used"); return NOCTX; }
    stack[depth++] = c; return OK;
}
R cuCtxPopCurrent_v2(struct context **c) { *c = stack[--depth]; return OK; }
R cuCtxGetDevice(int *d) { if (!current()) return NOCTX; *d = current()->device; return OK; }
R cuDevicePrimaryCtxRetain(struct context **c, int d) {
    if (ready()) return ready(); primary.magic = 55; primary_users++; *c = &primary; return OK; }
R cuDevicePrimaryCtxRelease_v2(int d) { if (!--primary_users) primary.magic = 0; return OK; }
R cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = primary_users > 0; return OK; }
/* A green context keeps the primary one; its memory is told by whoever asks the assigner. */
struct green { int magic; struct context context; };
R cuGreenCtxCreate(struct green **g, void *desc, int d, unsigned f) {
    if (getenv("DUMMY_GREEN")) return atoi(getenv("DUMMY_GREEN"));
    *g = calloc(1, sizeof **g); (*g)->magic = 66; (*g)->context.magic = 55; (*g)->context.device = d;
    primary.magic = 55; primary_users++; say("cuGreenCtxCreate %d %u", (int)(long)desc, f); return OK;
}
R cuGreenCtxDestroy(struct green *g) {
    if (g->magic != 66) return HANDLE;
    g->magic = g->context.magic = 0; if (!--primary_users) primary.magic = 0; say("cuGreenCtxDestroy"); return OK;
}
R cuCtxFromGreenCtx(struct context **c, struct green *g) { *c = &g->context; return OK; }
R cuGLCtxCreate_v2(struct context **c, unsigned f, int d) { say("cuGLCtxCreate %u", f); return cuCtxCreate_v2(c, f, d); }
R cuThreadExchangeStreamCaptureMode(int *m) { *m = 0; return OK; }
R cuStreamCreate(struct stream **s, unsigned f) {
    *s = calloc(1, sizeof **s); (*s)->magic = 77; (*s)->context = current(); say("cuStreamCreate"); return OK;
}
R cuStreamGetCtx(struct stream *s, struct context **c) { *c = s->context; return OK; }
R cuStreamDestroy_v2(struct stream *s) { s->magic = 0; say("stream goes"); say("cuStreamDestroy"); return OK; }
R cuStreamQuery(struct stream *s) {
    if (capturing) { say("FAULT query in capture"); return CAPTURE; }
    int64_t *b = busy(s);
    if (!b) return HANDLE;
    return (*b == INT64_MAX && endless) || (*b != INT64_MAX && *b > now()) ? NOTREADY : OK;
}
R cuStreamSynchronize(struct stream *s) { while (cuStreamQuery(s) == NOTREADY) usleep(100); say("cuStreamSynchronize"); return OK; }
R cuCtxSynchronize(void) { say("cuCtxSynchronize"); return cuStreamSynchronize(0); }
R cuStreamBeginCapture_v2(struct stream *s, int m) {
    if (s->capturing) return 401;
    say("cuStreamBeginCapture"); capturing++; s->capturing = 1; return OK;
}
R cuStreamEndCapture(struct stream *s, void **g) { capturing--; s->capturing = 0; say("cuStreamEndCapture"); *g = 0; return OK; }
R cuEventCreate(void **e, unsigned f) { *e = calloc(1, 8); return OK; }
R cuEventRecord(void *e, void *s) { say("cuEventRecord"); *(int64_t *)e = *busy(s); return OK; }
R cuEventDestroy_v2(void *e) { say("cuEventDestroy"); free(e); return OK; }
R cuEventQuery(void *e) { return *(int64_t *)e > now() ? NOTREADY : OK; }
static R launch(const char *name, unsigned x, void *s) {
    int64_t *b = busy(s);
    if (!b) return HANDLE;
    int64_t from = *b > now() ? *b : now();
    *b = x == 0xffffffff ? INT64_MAX : from + x * 1000000ll;
    if (x == 0xffffffff) endless = 1;
    say("%s %u", name, x);
    return OK;
}
R cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                 unsigned shared, void *s, void **p, void **e) {
    if (ready()) return ready();
    if (gy != 2 || gz != 3 || bx != 4 || by != 5 || bz != 6 || shared != 7 || p != (void *)8 || e != (void *)9) say("FAULT arguments");
    return launch("cuLaunchKernel", gx, s);
}
R cuLaunchKernel_ptsz(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned shared, void *s, void **p, void **e) {
    return launch("cuLaunchKernel_ptsz", gx, s);
}
R cuFuncGetName(const char **name, void *f) { if (f != (void *)10) return HANDLE; *name = "kernel_10"; return OK; }
/* Does nothing, says nothing: what a call costs. */
R cuGraphLaunch(void *g, void *s) { return OK; }
/* Of size 1 it takes a while, and the thread can be cancelled in it. */
R cuMemsetD8_v2(ptr p, unsigned char c, size_t n) {
    endless = 0; say("cuMemsetD8");
    for (int i = 0; n == 1 && i < 300; i++) usleep(1000);
    return OK;
}
/* A program's thread that is cancelled in a call of the driver's: 1 if it was. */
struct cancelled { R (*memset)(ptr, unsigned char, size_t); pid_t thread; };
static void *to_be_cancelled(void *argument) {
    ((struct cancelled *)argument)->memset(0, 0, 1);
    for (;;) pause();
}
R dummyCancel(R (*memset)(ptr, unsigned char, size_t), int milliseconds) {
    struct cancelled argument = {memset, 0};
    pthread_t thread;
    void *end = 0;
    pthread_create(&thread, 0, to_be_cancelled, &argument);
    usleep(1000 * milliseconds);
    pthread_cancel(thread);
    pthread_join(thread, &end);
    return end == PTHREAD_CANCELED;
}
R cuMemAlloc_v2(ptr *p, size_t n) {
    static int asked;
    if (getenv("DUMMY_ALLOC") && (!getenv("DUMMY_ALLOC_ONCE") || !asked++)) return atoi(getenv("DUMMY_ALLOC"));
    used += n; *p = (ptr)malloc(16); *(size_t *)*p = n; say("cuMemAlloc %zu", n); return OK;
}
R cuMemFree_v2(ptr p) { used -= *(size_t *)p; free((void *)p); say("cuMemFree"); return OK; }
/* A pool is the place that its properties name: kind and number. */
R cuMemPoolCreate(uint64_t **pool, int *p) { *pool = malloc(8); memcpy(*pool, p + 2, 8); return OK; }
R cuMemAllocFromPoolAsync(ptr *p, size_t n, void *pool, struct stream *s) {
    *p = (ptr)malloc(16); say("cuMemAllocFromPoolAsync %zu", n); return OK;
}
R cuMemGetInfo_v2(size_t *f, size_t *t) { if (f) *f = 1; if (t) *t = 80ull << 30; return OK; }
R cuMemCreate(uint64_t *h, size_t n, void *p, uint64_t f) { *h = (uint64_t)malloc(1); return OK; }
R cuMemRelease(uint64_t h) { return OK; }
R cuMemMap(ptr a, size_t n, size_t o, uint64_t h, uint64_t f) { return OK; }
R cuMemUnmap(ptr a, size_t n) { return OK; }
/* Eight integers, two of them on the stack. */
R cuLinkAddData_v2(void *a, int b, void *c, size_t d, const char *e, unsigned f, void *g, void *h) {
    say("cuLinkAddData %d %d %d %d %d %d %d %d", (int)(long)a, b, (int)(long)c, (int)d, (int)(long)e, f, (int)(long)g, (int)(long)h);
    return OK;
}
R cuTexRefSetMipmapLevelClamp(void *t, float lo, float hi) { say("cuTexRefSetMipmapLevelClamp %ld %g %g", (long)t, lo, hi); return OK; }

/* Ways out, of which nothing is done here but to say what came. */
static const int export_table = 3;
R cuGetExportTable(const void **t, const unsigned char *id) { say("cuGetExportTable %d %d", id[0], id[15]); *t = &export_table; return OK; }
R cuImportExternalMemory(void **m, const uint64_t *d) { say("cuImportExternalMemory %d %d %d", (int)d[0], (int)d[1], (int)d[3]); *m = (void *)41; return OK; }
R cuExternalMemoryGetMappedBuffer(ptr *p, void *m, const uint64_t *d) {
    say("cuExternalMemoryGetMappedBuffer %ld %d %d", (long)m, (int)d[0], (int)d[1]); *p = 42; return OK; }
R cuDestroyExternalMemory(void *m) { say("cuDestroyExternalMemory %ld", (long)m); return OK; }
R cuImportExternalSemaphore(void **s, const uint64_t *d) { say("cuImportExternalSemaphore %d %d", (int)d[0], (int)d[1]); *s = (void *)43; return OK; }
R cuMemHostRegister_v2(void *p, size_t n, unsigned f) { say("cuMemHostRegister %ld %zu %u", (long)p, n, f); return OK; }
R cuMemHostGetDevicePointer_v2(ptr *d, void *p, unsigned f) { say("cuMemHostGetDevicePointer %ld %u", (long)p, f); *d = 44; return OK; }
R cuMemHostUnregister(void *p) { say("cuMemHostUnregister %ld", (long)p); return OK; }
R cuGraphicsMapResources(unsigned n, void **r, void *s) { say("cuGraphicsMapResources %u %ld %ld", n, (long)r[0], (long)s); return OK; }
R cuGraphicsMapResources_ptsz(unsigned n, void **r, void *s) { say("cuGraphicsMapResources_ptsz %u %ld %ld", n, (long)r[0], (long)s); return OK; }
R cuSignalExternalSemaphoresAsync(void **s, void *p, unsigned n, void *t) {
    say("cuSignalExternalSemaphoresAsync %ld %ld %u %ld", (long)s[0], (long)p, n, (long)t); return OK; }

/* What a driver of the future has: another form of a known function, and one that nobody knows. */
R dummyLaunchNewer(void *f) { return OK; }
R dummyBrandNew(void) { return OK; }
R cuBrandNewer(void) { return OK; }

static R find(const char *name, void **p, int version, uint64_t flags) {
    if (getenv("DUMMY_NEWER") && version >= 99000) {
        if (!strcmp(name, "cuLaunchKernel")) { *p = dummyLaunchNewer; return OK; }
        if (!strcmp(name, "cuBrandNew")) { *p = dummyBrandNew; return OK; }
    }
    struct { const char *name; int since; uint64_t flags; void *p; } all[] = {
        {"cuInit", 2000, 0, cuInit}, {"cuMemAlloc", 3020, 0, cuMemAlloc_v2}, {"cuLaunchKernel", 7000, 2, cuLaunchKernel_ptsz},
        {"cuLaunchKernel", 4000, 0, cuLaunchKernel}, {"cuDeviceGet", 2000, 0, cuDeviceGet}, {"cuMemFree", 3020, 0, cuMemFree_v2},
    };
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        if (!strcmp(name, all[i].name) && version >= all[i].since && (!all[i].flags || all[i].flags == flags)) { *p = all[i].p; return OK; }
    *p = 0;
    return NOTFOUND;
}
R cuGetProcAddress(const char *name, void **p, int version, uint64_t flags) { return find(name, p, version, flags); }
R cuGetProcAddress_v2(const char *name, void **p, int version, uint64_t flags, int *status) {
    R r = find(name, p, version, flags);
    if (status) *status = r ? 1 : 0;
    return r;
}
