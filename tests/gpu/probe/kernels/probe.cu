// The probe's own kernels: the 128-bit hash, memory-bound reads and writes, a matrix product.
//
// probe.ptx is made from this file by kernels/regen (NVRTC 11.8 from PyPI, compute_70), so that it
// loads on every driver from 520 on; the probe needs no CUDA toolkit. All parameters are 64 bits wide.
// What each kernel must leave behind is computed again on the host by src/reference.rs.
typedef unsigned long long u64;

static __device__ __forceinline__ u64 splitmix64(u64 z) {
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// The 128-bit content hash of each chunk: out[2c] and out[2c + 1] += the sums over the chunk's 16-byte
// pairs of a permutation keyed by the pair's place. A sum does not care for the order, so any grid gives
// the same result and the hash of a chunk is the sum of those of its parts; a permutation makes sure that
// a change of one pair is always seen. gridDim.y is the number of chunks; out starts as zero.
extern "C" __global__ void __launch_bounds__(256)
probe_hash128(const ulonglong2 *data, u64 pairs, u64 seed, u64 *out) {
    const ulonglong2 *chunk = data + (u64)blockIdx.y * pairs;
    const u64 stride = (u64)gridDim.x * blockDim.x;
    u64 low = 0, high = 0;
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 key = seed + (i + 1) * 0x9E3779B97F4A7C15ull;
    const u64 step = stride * 0x9E3779B97F4A7C15ull;
#pragma unroll 4
    for (; i < pairs; i += stride, key += step) {
        ulonglong2 pair = chunk[i];
        u64 u = (pair.x ^ key) * 0xBF58476D1CE4E5B9ull;
        u ^= u >> 32;
        u64 v = (pair.y ^ u) * 0x94D049BB133111EBull;
        v ^= v >> 29;
        u = (u + v) * 0xD6E8FEB86659FD93ull;
        u ^= u >> 32;
        v = (v ^ u) * 0xFF51AFD7ED558CCDull;
        v ^= v >> 32;
        low += u;
        high += v;
    }
    for (int lane = 16; lane > 0; lane >>= 1) {
        low += __shfl_down_sync(0xFFFFFFFFu, low, lane);
        high += __shfl_down_sync(0xFFFFFFFFu, high, lane);
    }
    if ((threadIdx.x & 31) == 0) {
        atomicAdd(&out[2 * (u64)blockIdx.y], low);
        atomicAdd(&out[2 * (u64)blockIdx.y + 1], high);
    }
}

// out[i] = in[i] * 3 + salt: as many bytes read as written, next to no arithmetic.
extern "C" __global__ void __launch_bounds__(256)
probe_stream(ulonglong2 *out, const ulonglong2 *in, u64 pairs, u64 salt) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
#pragma unroll 4
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < pairs; i += stride) {
        ulonglong2 pair = in[i];
        pair.x = pair.x * 3 + salt;
        pair.y = pair.y * 3 + salt;
        out[i] = pair;
    }
}

// out[t] = the sum of `rounds` words of the table at places drawn by splitmix64: every read is to
// another page, so this kernel feels the address translation. The table has mask + 1 words.
extern "C" __global__ void __launch_bounds__(256)
probe_gather(const u64 *table, u64 mask, u64 rounds, u64 seed, u64 *out) {
    const u64 thread = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 sum = 0;
#pragma unroll 4
    for (u64 round = 0; round < rounds; round++) {
        sum += table[splitmix64(seed + thread * rounds + round) & mask];
    }
    out[thread] = sum;
}

// One thread walks the table, each word naming the next place: latency, translation included.
extern "C" __global__ void probe_chase(const u64 *table, u64 mask, u64 rounds, u64 *out) {
    u64 at = 0;
    for (u64 round = 0; round < rounds; round++) {
        at = table[(at + round) & mask];
    }
    out[0] = at;
}

// p[i] = a whole number from -4 to 3: products of such matrices are exact in single precision.
extern "C" __global__ void __launch_bounds__(256) probe_fill_small(float *p, u64 n, u64 seed) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        p[i] = (float)((int)(splitmix64(seed + i) >> 61) - 4);
    }
}

// c = a * b for row-major matrices of order n, a multiple of 128; 256 threads, a tile of 128 by 128
// a block, 8 by 8 results a thread.
extern "C" __global__ void __launch_bounds__(256, 2)
probe_matmul(const float *a, const float *b, float *c, u64 order) {
    __shared__ float left[8][128];
    __shared__ float right[8][128];
    const u64 n = order;
    const u64 row = (u64)blockIdx.y * 128, column = (u64)blockIdx.x * 128;
    const unsigned t = threadIdx.x;
    const unsigned my_row = (t / 16) * 8, my_column = (t % 16) * 8;
    const unsigned a_row = t / 2, a_column = (t % 2) * 4;
    const unsigned b_row = t / 32, b_column = (t % 32) * 4;
    float sum[8][8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) sum[i][j] = 0.0f;
    }
    for (u64 k = 0; k < n; k += 8) {
        const float4 from_a = *(const float4 *)&a[(row + a_row) * n + k + a_column];
        const float4 from_b = *(const float4 *)&b[(k + b_row) * n + column + b_column];
        left[a_column + 0][a_row] = from_a.x;
        left[a_column + 1][a_row] = from_a.y;
        left[a_column + 2][a_row] = from_a.z;
        left[a_column + 3][a_row] = from_a.w;
        *(float4 *)&right[b_row][b_column] = from_b;
        __syncthreads();
#pragma unroll
        for (int s = 0; s < 8; s++) {
            float x[8], y[8];
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = left[s][my_row + i];
#pragma unroll
            for (int j = 0; j < 8; j++) y[j] = right[s][my_column + j];
#pragma unroll
            for (int i = 0; i < 8; i++) {
#pragma unroll
                for (int j = 0; j < 8; j++) sum[i][j] += x[i] * y[j];
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            c[(row + my_row + i) * n + column + my_column + j] = sum[i][j];
        }
    }
}
