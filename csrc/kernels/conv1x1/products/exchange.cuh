// conv1x1_products in a cluster: every rank has a part of each sum of t, over its own filters.
//
// The warps of all ranks that multiply the same 16 pixels hold the same elements of t in the same registers. One rank
// owns these pixels: its warp takes what the others send it, straight from registers to registers by way of two slots,
// and adds it to its own in the order of the ranks. A slot has one mbarrier in every rank: with the owner it says that
// all have sent, with the others that the owner has taken.
#pragma once
#include "kernels/conv1x1/products/plan.cuh"

namespace conv1x1_products {

template <class V>
struct Exchange {
    int rank, ranks;
    int warp, owner;  // of the consumers' warps, which all ranks have; the rank that its pixels belong to
    int place;        // of `warp` among the owner's

    DEVICE Exchange(const Share& share, int consumer_warp)
        : rank(share.rank),
          ranks(share.ranks),
          warp(consumer_warp),
          owner(consumer_warp * share.ranks / kConsumerWarps),
          place(consumer_warp % (kConsumerWarps / share.ranks)) {}

    DEVICE bool owns() const { return owner == rank; }
    DEVICE SmemAddress slot(int index, int sender) const { return V::exchange(index, sender, ranks, place); }
};

constexpr int kPieceLoads = kPieceAccumulators / 4;  // of 16 bytes a lane

template <class V>
DEVICE constexpr int pieces() {
    constexpr int kPieces = V::kAccumulators / kPieceAccumulators;
    static_assert(kPieces % (2 * kExchangeSlots) == 0);  // so that every tile begins with slot 0 and parity 0
    return kPieces;
}

template <class V>
DEVICE void send(const float (&t)[V::kAccumulators], const Exchange<V>& exchange) {
#pragma unroll
    for (int piece = 0; piece < pieces<V>(); ++piece) {
        Turn at = turn<kExchangeSlots>(piece);
        SmemAddress barrier = V::exchanged(at.slot, exchange.warp);
        mbarrier_wait(barrier, at.parity ^ 1);
        SmemAddress to = remote_address(exchange.slot(at.slot, exchange.rank), exchange.owner) + lane_index() * 16;
        SmemAddress arrived = remote_address(barrier, exchange.owner);
#pragma unroll
        for (int i = 0; i < kPieceLoads; ++i) {
            const float* v = &t[piece * kPieceAccumulators + 4 * i];
            store_remote(to + i * 32 * 16, Floats4{{v[0], v[1], v[2], v[3]}}, arrived);
        }
    }
}

template <class V>
DEVICE void add_piece(float (&t)[V::kAccumulators], int piece, SmemAddress from) {
#pragma unroll
    for (int i = 0; i < kPieceLoads; ++i) {
        Floats4 more = load_shared<Floats4>(from + (i * 32 + lane_index()) * 16);
#pragma unroll
        for (int j = 0; j < 4; ++j) t[piece * kPieceAccumulators + 4 * i + j] += more.value[j];
    }
}

template <class V>
DEVICE void receive(float (&t)[V::kAccumulators], const Exchange<V>& exchange) {
#pragma unroll
    for (int piece = 0; piece < pieces<V>(); ++piece) {
        Turn at = turn<kExchangeSlots>(piece);
        SmemAddress barrier = V::exchanged(at.slot, exchange.warp);
        if (lane_index() == 0) mbarrier_arrive_expect_tx(barrier, (exchange.ranks - 1) * kPieceBytes);
        mbarrier_wait(barrier, at.parity);
#pragma unroll 1
        for (int sender = 0; sender < exchange.ranks; ++sender)
            if (sender != exchange.rank) add_piece<V>(t, piece, exchange.slot(at.slot, sender));
        warp_sync();
        int lane = lane_index();
        if (lane < exchange.ranks && lane != exchange.rank) mbarrier_arrive_remote(remote_address(barrier, lane));
    }
}

}  // namespace conv1x1_products
