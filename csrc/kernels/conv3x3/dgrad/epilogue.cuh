// conv3x3_halo_dgrad, consumers: what happens to 64 channels of a tile between the accumulator and global memory.
// Registers and the staging buffer are kernels/conv3x3/forward/epilogue.cuh's.
#pragma once
#include "kernels/conv3x3/dgrad/load.cuh"

namespace conv3x3_halo_dgrad {

// The maps that the epilogue of a phase reads.
struct Maps {
    bool below_z, skip, skip_out, below_out;

    DEVICE int count() const { return below_z + skip + skip_out + below_out; }
};

template <class P>
DEVICE Maps maps_of(const DgradArguments& arguments, int phase) {
    bool skips = P::kBlockBelow && (P::kPhases == 1 || phase == 0);
    return {arguments.tiles.has_residual, skips && arguments.has_skip, skips && arguments.has_skip_out,
            P::kBlockBelow && arguments.has_below_out};
}

struct alignas(8) Sums {
    float dx, dx_z;
};

// Of the thread's two channels.
struct Below {
    float scale[2], shift[2], mean[2];
    bool masks;
    Sums sums[2] = {};

    DEVICE Below(const DgradArguments& arguments, const Consumer& consumer, int first_channel)
        : masks(arguments.below_scale != nullptr) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int channel = first_channel + consumer.filter(half);
            scale[half] = masks ? arguments.below_scale[channel] : 0.0f;
            shift[half] = masks ? arguments.below_shift[channel] : 0.0f;
            mean[half] = arguments.below_mean ? arguments.below_mean[channel] : 0.0f;
        }
    }

    DEVICE float masked(float dx, float z, int half) const {
        return masks && fmaf(z, scale[half], shift[half]) <= 0.0f ? 0.0f : dx;
    }
    // Two pixels, as they are stored.
    template <ElementType kType>
    DEVICE void add(uint32_t dx, uint32_t z, int half, const Extent& pixels) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (!pixels.has_column(i)) continue;
            float value = widen<kType>(static_cast<uint16_t>(dx >> 16 * i));
            float centered = widen<kType>(static_cast<uint16_t>(z >> 16 * i)) - mean[half];
            sums[half].dx += value;
            sums[half].dx_z = fmaf(value, centered, sums[half].dx_z);
        }
    }
};

// The pixels of a tile that are of this phase of dx.
template <class P>
DEVICE Extent phase_extent(const Problem& problem, const Tile& tile, const Extents& phase) {
    Extent result = {0, phase.width - tile.column, 0};
    OutputRows rows(problem, tile.row);
#pragma unroll 1
    for (int row = 0; row < P::kTileRows; ++row) {
        MapRow at = rows.next();
        if (at.row < phase.height && at.image < problem.images) result.rows |= 1u << row;
    }
    return result;
}

// Adds a tile's sums of 64 channels to the block's, in shared memory; only one lane touches a channel's.
template <class P>
DEVICE void add_sums(const Below& below, const Consumer& consumer, int first_channel) {
    int set = P::kMomentSets > 1 ? consumer.index : 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Sums tile = {sum_of_four_lanes(below.sums[half].dx), sum_of_four_lanes(below.sums[half].dx_z)};
        if (lane_index() % 4) continue;
        SmemAddress address = P::sums(set, first_channel + consumer.filter(half));
        Sums before = load_shared<Sums>(address);
        store_shared(address, Sums{before.dx + tile.dx, before.dx_z + tile.dx_z});
    }
}

// One thread: makes the buffers of a consumer ready for `kStagedRows` rows of 64 channels: what the output's held has
// been stored, and the maps that the epilogue reads are on their way; below_z's to where dx will be put.
template <class P>
DEVICE void open_rows(const DgradParameters& parameters, const Consumer& consumer, const Tile& tile, int phase,
                      int first_row, int first_channel) {
    const DgradArguments& arguments = parameters.arguments;
    tma_store_wait_read();
    Maps maps = maps_of<P>(arguments, phase);
    if (maps.count() == 0) return;
    SmemAddress full = P::residual_full(consumer.index);
    mbarrier_arrive_expect_tx(full, maps.count() * P::kStagedBytes);
    OutputRows rows(arguments.tiles.problem, tile.row + first_row);
#pragma unroll 1
    for (int row = 0; row < P::kStagedRows; ++row) {
        MapRow from = rows.next();
        auto load = [&](SmemAddress to, const TensorMap& map) {
            tma_load_4d(to + row * kStagedRowBytes, map, full, first_channel, tile.column, from.row, from.image);
        };
        if (maps.below_z) load(P::staged(consumer.index), parameters.below_z[phase]);
        if (maps.skip) load(P::skip(consumer.index), parameters.skip);
        if (maps.skip_out) load(P::skip_out(consumer.index), parameters.skip_out);
        if (maps.below_out) load(P::below_out(consumer.index), parameters.below_out[phase]);
    }
}

// Four pairs of pixels of each map; zeros of those that are not there.
struct MapWords {
    uint32_t below_z[4] = {}, skip[4] = {}, skip_out[4] = {}, below_out[4] = {};
};

template <class P>
DEVICE MapWords load_words(const Maps& maps, const Consumer& consumer, int row) {
    MapWords words;
    auto load = [&](SmemAddress buffer, uint32_t (&r)[4]) {
        load_matrix_x4_trans(staged_matrices(buffer, consumer.thread) + row * kStagedRowBytes, r);
    };
    if (maps.below_z) load(P::staged(consumer.index), words.below_z);
    if (maps.skip) load(P::skip(consumer.index), words.skip);
    if (maps.skip_out) load(P::skip_out(consumer.index), words.skip_out);
    if (maps.below_out) load(P::below_out(consumer.index), words.below_out);
    return words;
}

// Two pixels of one channel, as they will be stored.
template <class P, ElementType kType>
DEVICE uint32_t finish_pair(const float* d, const MapWords& words, int i, const Maps& maps, const Below& below) {
    float dx[2];
#pragma unroll
    for (int pixel = 0; pixel < 2; ++pixel) {
        auto value = [&](uint32_t word) { return widen<kType>(static_cast<uint16_t>(word >> 16 * pixel)); };
        dx[pixel] = d[pixel];
        if (P::kBlockBelow) {
            bool skips = !maps.skip_out || !(value(words.skip_out[i]) <= 0.0f);
            dx[pixel] += skips ? value(words.skip[i]) : 0.0f;
            if (maps.below_out && value(words.below_out[i]) <= 0.0f) dx[pixel] = 0.0f;
        }
        dx[pixel] = below.masked(dx[pixel], value(words.below_z[i]), i % 2);
    }
    return pack<kType>(dx[0], dx[1]);
}

// 64 channels of a tile of one phase: masked, counted, and to global memory, `kStagedRows` rows at a time. The buffers
// were opened for the first of them.
template <class P, ElementType kType>
DEVICE void finish_phase(const float (&d)[P::kAccumulators], const DgradParameters& parameters, Consumer& consumer,
                         const Tile& tile, int phase, int first_channel) {
    const DgradArguments& arguments = parameters.arguments;
    const Problem& problem = arguments.tiles.problem;
    Maps maps = maps_of<P>(arguments, phase);
    Below below(arguments, consumer, first_channel);
    Extent pixels = phase_extent<P>(problem, tile, extents_of<P>(arguments, phase));
    SmemAddress matrices = staged_matrices(P::staged(consumer.index), consumer.thread);
#pragma unroll
    for (int first_row = 0; first_row < P::kTileRows; first_row += P::kStagedRows) {
        if (first_row > 0 && consumer.thread == 0)
            open_rows<P>(parameters, consumer, tile, phase, first_row, first_channel);
        if (maps.count() > 0)
            mbarrier_wait(P::residual_full(consumer.index), consumer.residual_uses++ % 2);
        else
            consumer.sync();
#pragma unroll
        for (int row = 0; row < P::kStagedRows; row += 2) {
            MapWords words = load_words<P>(maps, consumer, row);
            uint32_t dx[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int tile_row = first_row + row + i / 2;
                dx[i] = finish_pair<P, kType>(&d[4 * tile_row + i % 2 * 2], words, i, maps, below);
                if (pixels.has_row(tile_row)) below.add<kType>(dx[i], words.below_z[i], i % 2, pixels);
            }
            store_matrix_x4_trans(matrices + row * kStagedRowBytes, dx[0], dx[1], dx[2], dx[3]);
        }
        fence_proxy_async();
        consumer.sync();
        if (consumer.thread == 0)
            store_staged<P>(parameters.dx[phase], problem, consumer, tile, first_row, first_channel);
    }
    if (arguments.partials) add_sums<P>(below, consumer, first_channel);
}

template <class P>
DEVICE void open_phase(const DgradParameters& parameters, const Consumer& consumer, const Tile& tile, int phase,
                       int first_channel) {
    if (consumer.thread == 0) open_rows<P>(parameters, consumer, tile, phase, 0, first_channel);
}

// One row of partials a block: the sets of its consumers, in their order.
template <class P>
DEVICE void write_sums(const DgradArguments& arguments, const Consumer& consumer) {
    named_barrier_sync(kAllConsumersBarrier, kConsumers * kWarpgroup);
    int thread = consumer.index * kWarpgroup + consumer.thread;
    for (int row = block_index(); row < arguments.partial_rows; row += block_count()) {
        float* to = arguments.partials + static_cast<int64_t>(row) * 2 * P::kDxChannels;
        for (int channel = thread; channel < P::kDxChannels; channel += kConsumers * kWarpgroup) {
            Sums total = {};
            for (int set = 0; set < P::kMomentSets && row == block_index(); ++set) {
                Sums more = load_shared<Sums>(P::sums(set, channel));
                total = {total.dx + more.dx, total.dx_z + more.dx_z};
            }
            to[channel] = total.dx;
            to[P::kDxChannels + channel] = total.dx_z;
        }
    }
}

}  // namespace conv3x3_halo_dgrad
