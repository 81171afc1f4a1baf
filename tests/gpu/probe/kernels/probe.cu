// The probe's own kernels: memory-bound reads and writes, a matrix product.
//
// probe.ptx is made from this file by preload/abi/kernels/regen (NVRTC 11.8 from PyPI, compute_70), so that it
// loads on every driver from 520 on; the probe needs no CUDA toolkit. All parameters are 64 bits wide.
// What each kernel must leave behind is computed again on the host by src/reference.rs.
typedef unsigned long long u64;

static __device__ __forceinline__ u64 splitmix64(u64 z) {
    z += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
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
