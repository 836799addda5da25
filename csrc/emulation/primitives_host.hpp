// The primitives on the CPU, for the thread the emulator currently runs. Contracts: primitives.cuh.
#pragma once
#include <atomic>
#include <bit>

#include "emulation/launch.hpp"

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define DEVICE inline

using emu::TensorMap;

DEVICE emu::Cta& cta() { return emu::Cta::running(); }

DEVICE int thread_index() { return cta().thread().index; }
DEVICE int block_index() { return cta().block(); }
DEVICE int block_count() { return cta().shape().blocks; }
DEVICE int lane_index() { return cta().thread().lane(); }

DEVICE SmemAddress smem_base() { return 0; }

template <class T>
DEVICE T load_shared(SmemAddress address) {
    T value;
    cta().shared().generic_read(cta().agent(), address, &value, sizeof value);
    return value;
}
template <class T>
DEVICE void store_shared(SmemAddress address, const T& value) {
    cta().generic_write(address, &value, sizeof value);
}

// ---- barriers ----

DEVICE void cta_sync() { cta().named_barrier(0, cta().shape().threads, true); }
DEVICE void warp_sync() { cta().exchange(std::array<uint32_t, 0>{}); }
DEVICE void named_barrier_sync(int id, int threads) { cta().named_barrier(id, threads, true); }
DEVICE void named_barrier_arrive(int id, int threads) { cta().named_barrier(id, threads, false); }

DEVICE void mbarrier_init(SmemAddress barrier, int arrivals) { cta().mbarrier_init(barrier, arrivals); }
DEVICE void mbarrier_init_fence() { cta().mbarrier_init_fence(); }
DEVICE void mbarrier_arrive(SmemAddress barrier) { cta().mbarrier_arrive(barrier, 0); }
DEVICE void mbarrier_arrive_expect_tx(SmemAddress barrier, uint32_t bytes) { cta().mbarrier_arrive(barrier, bytes); }
DEVICE void mbarrier_wait(SmemAddress barrier, uint32_t parity) { cta().mbarrier_wait(barrier, parity); }

// ---- the cluster ----

DEVICE int cluster_rank() { return cta().rank(); }
DEVICE int cluster_size() { return cta().shape().cluster; }
DEVICE void cluster_sync() { cta().cluster_sync(); }
DEVICE SmemAddress remote_address(SmemAddress address, int rank) { return cta().remote_address(address, rank); }
DEVICE void mbarrier_arrive_remote(SmemAddress barrier) { cta().mbarrier_arrive_remote(barrier); }
template <class T>
DEVICE void store_remote(SmemAddress address, const T& value, SmemAddress barrier) {
    static_assert(sizeof(T) == 16);
    cta().store_remote(address, &value, sizeof value, barrier);
}

// ---- TMA ----

DEVICE void fence_proxy_async() { cta().fence_proxy_async(); }

DEVICE void tma_prefetch_map(const TensorMap&) {}
DEVICE void tma_load_4d(SmemAddress destination, const TensorMap& map, SmemAddress barrier, int c0, int c1, int c2,
                        int c3) {
    cta().tma_load(destination, map, barrier, {c0, c1, c2, c3, 0});
}
DEVICE void tma_store_4d(const TensorMap& map, SmemAddress source, int c0, int c1, int c2, int c3) {
    cta().tma_store(map, source, {c0, c1, c2, c3, 0});
}
DEVICE void tma_store_commit() { cta().tma_store_commit(); }
DEVICE void tma_store_wait_read() { cta().tma_store_wait(); }

// ---- warp ----

DEVICE float shuffle_xor(float value, int mask) {
    auto& lanes = cta().exchange(std::array{std::bit_cast<uint32_t>(value)});
    return std::bit_cast<float>(lanes[lane_index() ^ mask][0]);
}

DEVICE uint32_t warp_ballot(bool condition) {
    uint32_t bits = 0;
    auto& lanes = cta().exchange(std::array{uint32_t{condition}});
    for (int lane = 0; lane < 32; ++lane) bits |= lanes[lane][0] << lane;
    return bits;
}

DEVICE int warp_uniform(int value) {
    for (const auto& lane : cta().exchange(std::array{uint32_t(value)}))
        if (lane[0] != uint32_t(value)) emu::fail("warp_uniform: lanes hold %d and %d", value, int(lane[0]));
    return value;
}

// Lane 8 * i + r gives the address of row r of the 8x8 matrix i; every lane gets one pair of elements of each.
DEVICE void load_matrix_x4(SmemAddress row, uint32_t (&r)[4]) {
    auto& lanes = cta().exchange(std::array{row});
    int lane = lane_index();
    for (int i = 0; i < 4; ++i) r[i] = load_shared<uint32_t>(lanes[8 * i + lane / 4][0] + lane % 4 * 4);
}
DEVICE void load_matrix_x4_trans(SmemAddress row, uint32_t (&r)[4]) {
    auto& lanes = cta().exchange(std::array{row});
    int lane = lane_index();
    for (int i = 0; i < 4; ++i) {
        r[i] = 0;
        for (int half = 0; half < 2; ++half)
            r[i] |= uint32_t{load_shared<uint16_t>(lanes[8 * i + lane % 4 * 2 + half][0] + lane / 4 * 2)} << 16 * half;
    }
}
DEVICE void store_matrix_x4_trans(SmemAddress row, uint32_t r0, uint32_t r1, uint32_t r2, uint32_t r3) {
    auto& lanes = cta().exchange(std::array{row});
    int lane = lane_index();
    const uint32_t r[4] = {r0, r1, r2, r3};
    for (int i = 0; i < 4; ++i)
        for (int half = 0; half < 2; ++half)
            store_shared(lanes[8 * i + lane % 4 * 2 + half][0] + lane / 4 * 2, uint16_t(r[i] >> 16 * half));
}

template <ElementType kType>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    auto& lanes = cta().exchange(std::array{a[0], a[1], a[2], a[3], b[0], b[1]});
    auto element = [&](int row, int word, int k) {  // fragments of row-major A and column-major B
        return emu::to_float(kType, uint16_t(lanes[row % 8 * 4 + k % 8 / 2][word] >> 16 * (k % 2)));
    };
    int lane = lane_index();
    for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) d[i] += element(row, row / 8 + k / 8 * 2, k) * element(column, 4 + k / 8, k);
    }
}

// ---- wgmma ----

DEVICE void wgmma_fence() { cta().wgmma_fence(); }
DEVICE void wgmma_commit() { cta().wgmma_commit(); }
template <int kGroupsInFlight>
DEVICE void wgmma_wait() {
    cta().wgmma_wait(kGroupsInFlight);
}

template <ElementType kType, int kN, Major kBMajor>
DEVICE void wgmma_rs(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b_descriptor, bool accumulate) {
    cta().wgmma_issue({kN, kType, true, Major::kK, kBMajor},
                      {d, {a[0], a[1], a[2], a[3]}, 0, b_descriptor, accumulate});
}
template <ElementType kType, int kN, Major kAMajor, Major kBMajor>
DEVICE void wgmma_ss(float (&d)[kN / 2], uint64_t a_descriptor, uint64_t b_descriptor, bool accumulate) {
    cta().wgmma_issue({kN, kType, false, kAMajor, kBMajor}, {d, {}, a_descriptor, b_descriptor, accumulate});
}

// ---- arithmetic and registers ----

template <int kRegisters>
DEVICE void register_budget_decrease() {
    cta().set_register_budget(kRegisters);
}
template <int kRegisters>
DEVICE void register_budget_increase() {
    cta().set_register_budget(kRegisters);
}

template <ElementType kType>
DEVICE uint32_t fma_relu_oob(uint32_t x, uint32_t scale, uint32_t bias) {
    return emu::for_both_halves(emu::fma_relu_oob<kType>, x, scale, bias);
}
DEVICE uint32_t pack_bf16x2(float low, float high) {
    return emu::bf16_from_float(low) | uint32_t{emu::bf16_from_float(high)} << 16;
}

// ---- global memory ----

DEVICE uint32_t atomic_increment(uint32_t* counter) {
    cta().global_access("atomic");
    return std::atomic_ref(*counter).fetch_add(1);
}
DEVICE void memory_fence_gpu() { std::atomic_thread_fence(std::memory_order_seq_cst); }

// ---- grids ----

DEVICE void wait_for_previous_grid() { cta().wait_for_previous_grid(); }
DEVICE void launch_next_grid() {}
