// The primitives as PTX for sm_90a. Contracts: primitives.cuh.
#pragma once
#include <cuda.h>

#define DEVICE __device__ __forceinline__

using TensorMap = CUtensorMap;

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_index() { return blockIdx.x; }
DEVICE int block_count() { return gridDim.x; }
DEVICE int lane_index() { return threadIdx.x % 32; }

DEVICE SmemAddress smem_base() {
    extern __shared__ __align__(1024) uint8_t dynamic_shared_memory[];
    return static_cast<SmemAddress>(__cvta_generic_to_shared(dynamic_shared_memory));
}

template <class T>
DEVICE T load_shared(SmemAddress address) {
    return *static_cast<const T*>(__cvta_shared_to_generic(address));
}
template <class T>
DEVICE void store_shared(SmemAddress address, const T& value) {
    *static_cast<T*>(__cvta_shared_to_generic(address)) = value;
}

// ---- barriers ----

DEVICE void cta_sync() { __syncthreads(); }
DEVICE void warp_sync() { __syncwarp(); }
DEVICE void named_barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
DEVICE void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

DEVICE void mbarrier_init(SmemAddress barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void mbarrier_arrive(SmemAddress barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
DEVICE void mbarrier_arrive_expect_tx(SmemAddress barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
DEVICE void mbarrier_wait(SmemAddress barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "retry:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra retry;\n"
        "}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// ---- the cluster ----

DEVICE int cluster_rank() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
}
DEVICE int cluster_size() {
    uint32_t size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return static_cast<int>(size);
}
DEVICE void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
DEVICE SmemAddress remote_address(SmemAddress address, int rank) {
    SmemAddress remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}
// Released to its own CTA's scope, as CUTLASS does: to the cluster's it is a fence of all of global memory
// (MEMBAR.GPU).
DEVICE void mbarrier_arrive_remote(SmemAddress barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
template <class T>
DEVICE void store_remote(SmemAddress address, const T& value, SmemAddress barrier) {
    static_assert(sizeof(T) == 16);
    const auto& word = reinterpret_cast<const uint32_t (&)[4]>(value);
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
            address),
        "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]), "r"(barrier)
        : "memory");
}

// ---- TMA ----

DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void tma_prefetch_map(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }
DEVICE void tma_load_4d(SmemAddress destination, const TensorMap& map, SmemAddress barrier, int c0, int c1, int c2,
                        int c3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
        "%6}], [%2];" ::"r"(destination),
        "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
}
DEVICE void tma_store_4d(const TensorMap& map, SmemAddress source, int c0, int c1, int c2, int c3) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
                 "r"(source), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
                 : "memory");
}
DEVICE void tma_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
DEVICE void tma_store_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// ---- warp ----

DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xFFFFFFFF, value, mask); }

DEVICE uint32_t warp_ballot(bool condition) { return __ballot_sync(0xFFFFFFFF, condition); }

DEVICE int warp_uniform(int value) { return __shfl_sync(0xFFFFFFFF, value, 0); }

DEVICE void load_matrix_x4(SmemAddress row, uint32_t (&r)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
DEVICE void load_matrix_x4_trans(SmemAddress row, uint32_t (&r)[4]) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
DEVICE void store_matrix_x4_trans(SmemAddress row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r0), "r"(r1),
                 "r"(r2), "r"(r3)
                 : "memory");
}

template <ElementType kType>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (kType == ElementType::kBf16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- wgmma ----

DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kGroupsInFlight>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsInFlight) : "memory");
}

#include "device/ptx/wgmma.cuh"  // generated: wgmma_rs, wgmma_ss

// ---- arithmetic and registers ----

template <int kRegisters>
DEVICE void register_budget_decrease() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
DEVICE void register_budget_increase() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <ElementType kType>
DEVICE uint32_t fma_relu_oob(uint32_t x, uint32_t scale, uint32_t bias) {
    uint32_t result;
    if constexpr (kType == ElementType::kBf16)
        asm("fma.rn.oob.relu.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(scale), "r"(bias));
    else
        asm("fma.rn.oob.relu.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(scale), "r"(bias));
    return result;
}
DEVICE uint32_t pack_bf16x2(float low, float high) {
    uint32_t result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

// ---- global memory ----

DEVICE uint32_t atomic_increment(uint32_t* counter) { return atomicAdd(counter, 1u); }
DEVICE void memory_fence_gpu() { __threadfence(); }

// ---- grids ----

DEVICE void wait_for_previous_grid() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
DEVICE void launch_next_grid() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}
