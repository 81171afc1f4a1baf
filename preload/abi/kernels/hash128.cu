// The pager's own kernel: the 128-bit hash by which it knows that a chunk has not changed.
//
// hash128.ptx is made from this file by regen (NVRTC 11.8 from PyPI, compute_70), so that it loads on every driver
// from 520 on and GPU from Volta on; no CUDA toolkit is needed. ../src/hash.rs computes the same on the host.
typedef unsigned long long u64;

// The 128-bit content hash of each chunk: out[2c] and out[2c + 1] += the sums over the chunk's 16-byte
// pairs of a permutation keyed by the pair's place. A sum does not care for the order, so any grid gives
// the same result and the hash of a chunk is the sum of those of its parts; a permutation makes sure that
// a change of one pair is always seen. gridDim.y is the number of chunks; out starts as zero.
extern "C" __global__ void __launch_bounds__(256)
acb_hash128(const ulonglong2 *data, u64 pairs, u64 seed, u64 *out) {
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
