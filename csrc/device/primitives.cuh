// Every hardware primitive a kernel may use, by name. Kernels include only this header.
//
// nvcc gets one PTX instruction per function; any other compiler gets the emulator, in which a CTA runs on
// the CPU and every rule the hardware leaves unchecked is checked. The two headers below declare the same
// functions; their contract is written once, here.
//
// Shared memory is addressed by 32-bit shared-window addresses (SmemAddress), never by pointers.
//
// clang-format off
//   thread_index() block_index() block_count() lane_index()
//   smem_base()                               first byte of dynamic shared memory, 1024 B aligned
//   load_shared<T>(a)  store_shared(a, v)     generic-proxy access of 2, 4, 8 or 16 bytes
//   cta_sync()  warp_sync()
//   named_barrier_sync(id, threads)           bar.sync;  named_barrier_arrive does not wait
//   mbarrier_init(a, arrivals)  mbarrier_init_fence()
//   mbarrier_arrive(a)  mbarrier_arrive_expect_tx(a, bytes)  mbarrier_wait(a, parity)
//   cluster_rank()  cluster_size()  cluster_sync()           every thread of every CTA of the cluster
//   remote_address(a, rank)                   where a is in that CTA's shared memory, for the two that follow alone; the
//                                             CTA must not end before they have arrived
//   mbarrier_arrive_remote(a)                 another CTA may then overwrite what I have read; orders no writes of mine
//   store_remote(a, v, mbarrier)              16 bytes to another CTA, which land before the phase of that CTA's mbarrier
//                                             completes that expects them; what they overwrite is generic-proxy memory
//   fence_proxy_async()                       my generic writes to shared memory become visible to TMA and wgmma
//   tma_load_4d(dst, map, mbarrier, c0..c3)   bytes land before the mbarrier's phase completes; dst 128 B aligned
//   tma_prefetch_map(map)                     a hint: the map will be needed
//   tma_store_4d(map, src, c0..c3)  tma_store_commit()  tma_store_wait_read()   source reusable after the wait
//   wgmma_fence()  wgmma_commit()  wgmma_wait<groups in flight>()
//   wgmma_rs<type, N, b_major>(d, a, b_descriptor, accumulate)           m64 n(N) k16, A in registers
//   wgmma_ss<type, N, a_major, b_major>(d, a_descriptor, b_descriptor, accumulate)
//   mma_m16n8k16<type>(d, a, b)               one warp
//   load_matrix_x4(a) -> 4 registers          ldmatrix;  load_matrix_x4_trans: every 8x8 matrix transposed
//   store_matrix_x4_trans(a, r0..r3)          stmatrix, transposed
//   shuffle_xor(value, mask)  warp_ballot(condition)                         one bit a lane
//   warp_uniform(value)                       same in all lanes; told to the compiler, so that it uses uniform registers
//   register_budget_decrease<n>() register_budget_increase<n>()          setmaxnreg
//   fma_relu_oob<type>(x, scale, bias)        two at a time: max(x * scale + bias, 0), and 0 where x is TMA's OOB NaN
//   pack_bf16x2(low, high)
//   atomic_increment(counter) -> old          device scope, relaxed;  memory_fence_gpu() orders it
//   wait_for_previous_grid()                  until the grid before this one has ended and its writes are visible; in a
//                                             kernel of launch/check.h's run_dependent, before anything that another
//                                             kernel may write or still read. Elsewhere, and below sm_90, nothing
//   launch_next_grid()                        once all blocks have called this or ended, a dependent grid may start
// clang-format on
#pragma once
#include <cstdint>

#include "device/swizzle.cuh"
#include "device/wgmma_types.cuh"

using SmemAddress = uint32_t;

struct alignas(16) Chunk {  // 16 bytes: eight 16-bit channels
    uint32_t word[4];
};

// The shared-memory matrix descriptor of wgmma. `leading_bytes` is ignored by swizzled K-major operands.
HOST_DEVICE constexpr uint64_t matrix_descriptor(SmemAddress start, uint32_t leading_bytes, uint32_t stride_bytes,
                                                 Swizzle swizzle) {
    constexpr auto encode = [](uint32_t bytes) { return uint64_t{(bytes & 0x3FFFF) >> 4}; };
    return encode(start) | encode(leading_bytes) << 16 | encode(stride_bytes) << 32 |
           static_cast<uint64_t>(swizzle) << 62;
}

// The same matrix `bytes` further on. One addition on a descriptor built once per tile: encoding every address
// anew costs two registers per wgmma of an unrolled chain.
HOST_DEVICE constexpr uint64_t advanced(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

#ifdef __CUDACC__
#include "device/ptx/primitives.cuh"
#else
#include "emulation/primitives_host.hpp"
#endif
