// conv1x1_dgrad, consumers: what happens to a tile between the accumulators and global memory.
#pragma once
#include "kernels/conv1x1/dgrad/plan.cuh"
#include "kernels/conv1x1/forward/statistics.cuh"

namespace conv1x1_dgrad {

// One thread: makes the consumer's buffers ready for the slices from `first_slice` on that find room at once. What dx's
// held has been stored, and the maps that the epilogue reads are on their way.
template <class V>
DEVICE void open_slices(const DgradParameters& parameters, const DgradWork& work, int first_slice,
                        const Consumer& consumer) {
    const EpilogueMaps& maps = parameters.arguments.maps;
    tma_store_wait_read();
    if (maps.count == 0) return;
    int slices = V::slices_at_once(maps);
    SmemAddress full = V::maps_full(consumer.index);
    mbarrier_arrive_expect_tx(full, maps.count * slices * kSliceBytes);
    auto load = [&](int map, const TensorMap& from, int image) {
        if (map < 0) return;
#pragma unroll 1
        for (int slice = first_slice; slice < first_slice + slices; ++slice)
            tma_load_4d(V::buffer(consumer.index, maps, map, slice), from, full,
                        work.first_channel + slice * kSliceChannels, work.pixels.column, work.pixels.row, image);
    };
    const Phase& phase = parameters.arguments.phase[work.phase];
    const PhaseMaps& from = parameters.maps[work.phase];
    // of an image that does not exist TMA brings zeros
    int skip_image = phase.has_skip ? work.pixels.image : phase.tiles.images;
    load(maps.skip, from.skip, skip_image);
    load(maps.skip_out, from.skip_out, skip_image);
    load(maps.below_out, from.below_out, work.pixels.image);
    load(maps.below_z, from.below_z, work.pixels.image);
}

struct alignas(8) Sums {
    float dx, dx_z;
};

// Of a thread's four channels: two neighbours in each of two neighbouring eights.
struct Below {
    Floats2 scale[2] = {}, shift[2] = {}, mean[2] = {};
    bool masks;
    Sums sums[2][2] = {};

    DEVICE Below(const DgradArguments& arguments, int first_channel, const Consumer& consumer)
        : masks(arguments.below_scale != nullptr) {
        if (arguments.maps.below_z < 0) return;
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
            if (first_channel + 8 * eight >= arguments.channels) continue;
            int channel = first_channel + 8 * eight + consumer.column();
            mean[eight] = load_pair(arguments.below_mean + channel);
            if (!masks) continue;
            scale[eight] = load_pair(arguments.below_scale + channel);
            shift[eight] = load_pair(arguments.below_shift + channel);
        }
    }

    DEVICE float masked(float dx, float z, int eight, int i) const {
        return masks && fmaf(z, scale[eight].value[i], shift[eight].value[i]) <= 0.0f ? 0.0f : dx;
    }
    // Two channels of one pixel, as they are stored.
    template <ElementType kType>
    DEVICE void add(uint32_t dx, uint32_t z, int eight) {
        Floats2 value = unpack<kType>(dx), below = unpack<kType>(z);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            sums[eight][i].dx += value.value[i];
            sums[eight][i].dx_z = fmaf(value.value[i], below.value[i] - mean[eight].value[i], sums[eight][i].dx_z);
        }
    }
};

// 16 pixels x 16 channels of each map; zeros of those that are not there.
struct MapWords {
    uint32_t skip[4] = {}, skip_out[4] = {}, below_out[4] = {}, below_z[4] = {};
};

template <class V>
DEVICE SmemAddress map_matrices(const EpilogueMaps& maps, int map, int channel, int block, const Consumer& consumer) {
    return matrix_row(V::buffer(consumer.index, maps, map, channel / kSliceChannels), block * 64 + consumer.warp * 16,
                      channel % kSliceChannels / kChunkChannels);
}

template <class V>
DEVICE MapWords load_words(const EpilogueMaps& maps, int channel, int block, const Consumer& consumer) {
    MapWords words;
    auto load = [&](int map, uint32_t (&r)[4]) {
        if (map >= 0) load_matrix_x4(map_matrices<V>(maps, map, channel, block, consumer), r);
    };
    load(maps.skip, words.skip);
    load(maps.skip_out, words.skip_out);
    load(maps.below_out, words.below_out);
    load(maps.below_z, words.below_z);
    return words;
}

// Two channels of one pixel, as they will be stored; NaN in a map that masks lets pass.
template <ElementType kType>
DEVICE uint32_t finish_pair(const float* d, const MapWords& words, int i, const EpilogueMaps& maps,
                            const Below& below) {
    Floats2 skip = unpack<kType>(words.skip[i]), skip_out = unpack<kType>(words.skip_out[i]);
    Floats2 below_out = unpack<kType>(words.below_out[i]), below_z = unpack<kType>(words.below_z[i]);
    float dx[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
        bool skips = maps.skip_out < 0 || !(skip_out.value[j] <= 0.0f);
        dx[j] = d[j] + (skips ? skip.value[j] : 0.0f);
        if (maps.below_out >= 0 && below_out.value[j] <= 0.0f) dx[j] = 0.0f;
        dx[j] = below.masked(dx[j], below_z.value[j], i / 2, j);
    }
    return pack<kType>(dx[0], dx[1]);
}

// 16 of the tile's channels, from `channel` on: masked, rounded, to dx's buffer, and summed where `exists` says so.
template <class V>
DEVICE void finish_channels(const Accumulators<V>& d, const DgradArguments& arguments, int channel, uint32_t exists,
                            Below& below, const Consumer& consumer) {
    const EpilogueMaps& maps = arguments.maps;
#pragma unroll
    for (int block = 0; block < kRowBlocks; ++block) {
        MapWords words = load_words<V>(maps, channel, block, consumer);
        uint32_t dx[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            dx[i] = finish_pair<V::kType>(&d.block[block][channel / 2 + 2 * i], words, i, maps, below);
            if (exists >> (2 * block + i % 2) & 1) below.template add<V::kType>(dx[i], words.below_z[i], i / 2);
        }
        store_matrix_x4(map_matrices<V>(maps, 0, channel, block, consumer), dx[0], dx[1], dx[2], dx[3]);
    }
}

// ---- sums ----

// A warp's sums of 16 channels, the `channel`-th of kSumChannels and those that follow.
template <class V>
DEVICE void put_sums(const Below& below, int channel, const Consumer& consumer) {
#pragma unroll
    for (int eight = 0; eight < 2; ++eight)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const Sums& own = below.sums[eight][i];
            Sums sums = {sum_of_lanes(own.dx), sum_of_lanes(own.dx_z)};
            if (lane_index() < 4)
                store_shared(V::sums(consumer.index, consumer.warp, channel + 8 * eight + consumer.column() + i), sums);
        }
}

// The four warps' sums, in their order, to global memory.
template <class V>
DEVICE void write_sums(const DgradArguments& arguments, int row, int first_channel, const Consumer& consumer) {
    int channel = first_channel + consumer.thread;
    if (consumer.thread >= kSumChannels || channel >= arguments.channels) return;
    Sums total = {};
    for (int warp = 0; warp < kWarps; ++warp) {
        Sums more = load_shared<Sums>(V::sums(consumer.index, warp, consumer.thread));
        total = {total.dx + more.dx, total.dx_z + more.dx_z};
    }
    float* to = arguments.partials + int64_t{2} * row * arguments.channels + channel;
    to[0] = total.dx;
    to[arguments.channels] = total.dx_z;
}

// The sums of 16 channels of the tile; of those before them too, once there are kSumChannels.
template <class V>
DEVICE void sum_channels(const Below& below, const DgradArguments& arguments, const DgradWork& work, int channel,
                         const Consumer& consumer) {
    put_sums<V>(below, channel % kSumChannels, consumer);
    if (channel % kSumChannels < kSumChannels - 16) return;
    int first = channel / kSumChannels * kSumChannels;
    consumer.sync();
    write_sums<V>(arguments, work.row, work.first_channel + first, consumer);
    consumer.sync();
}

// The thread's pixels of the tile that count, a bit each: 2 * block + half. None where nobody wants their sums.
DEVICE uint32_t counted_pixels(const DgradArguments& arguments, const DgradWork& work, const Consumer& consumer) {
    uint32_t bits = 0;
    if (!arguments.partials) return bits;
    const Tiles& tiles = arguments.phase[work.phase].tiles;
#pragma unroll
    for (int i = 0; i < 2 * kRowBlocks; ++i)
        bits |= uint32_t{tiles.inside(work.pixels, consumer.pixel(i / 2, i % 2))} << i;
    return bits;
}

// ---- a tile ----

template <class V>
DEVICE void store_slice(const DgradParameters& parameters, const DgradWork& work, int slice, const Consumer& consumer) {
    fence_proxy_async();
    consumer.sync();
    if (consumer.thread > 0) return;
    tma_store_4d(parameters.maps[work.phase].dx, V::buffer(consumer.index, parameters.arguments.maps, 0, slice),
                 work.first_channel + slice * kSliceChannels, work.pixels.column, work.pixels.row, work.pixels.image);
    tma_store_commit();
}

// The buffers were opened for the first slices. `uses` counts how often the maps' have been filled.
template <class V>
DEVICE void finish_tile(const Accumulators<V>& d, const DgradParameters& parameters, const DgradWork& work,
                        const Consumer& consumer, int& uses) {
    const DgradArguments& arguments = parameters.arguments;
    uint32_t exists = counted_pixels(arguments, work, consumer);
#pragma unroll
    for (int channel = 0; channel < kTileChannels; channel += 16) {
        int slice = channel / kSliceChannels;
        if (channel % kSliceChannels == 0 && slice % V::slices_at_once(arguments.maps) == 0) {
            if (slice > 0 && consumer.thread == 0) open_slices<V>(parameters, work, slice, consumer);
            if (arguments.maps.count > 0)
                mbarrier_wait(V::maps_full(consumer.index), uses++ % 2);
            else
                consumer.sync();
        }
        Below below(arguments, work.first_channel + channel, consumer);
        finish_channels<V>(d, arguments, channel, exists, below, consumer);
        if (arguments.partials) sum_channels<V>(below, arguments, work, channel, consumer);
        if (channel % kSliceChannels == kSliceChannels - 16) store_slice<V>(parameters, work, slice, consumer);
    }
}

}  // namespace conv1x1_dgrad
