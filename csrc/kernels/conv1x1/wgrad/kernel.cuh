// conv1x1_wgrad: the gradient of a 1x1 convolution's weight, stride 1 or 2, C -> K channels, both multiples of 8, NHWC
// float16 or bfloat16, for sm_90a: a GEMM, gemm_m = filters, gemm_n = channels, gemm_k = pixels.
//
//     dz = a * g + b * z + c                       rounded; the backward of the convolution's own batch norm
//     dW[k][c] = sum over pixels of dz * prologue(x), float32
//     prologue    nothing, or relu(x * in_scale + in_shift) rounded to x's type
//
// One thread of warpgroup 0 loads. Each consumer turns g and z into the transposed dz of its 64 filters, in registers:
// operand A of a whole tile of pixels, so that g and z make room before the products begin, and one consumer makes dz
// while the other multiplies. x is operand B as it lies in memory; a prologue is applied to it there, by both
// consumers. Blocks share the pixels (plan.cuh) and leave a row of partials each, to be summed in their order.
//
// A pixel that does not exist is a zero in x, so that an infinite c, unlike a finite one, may make a NaN where the
// definition has an infinity.
#pragma once
#include "kernels/conv1x1/wgrad/plan.cuh"

namespace conv1x1_wgrad {

DEVICE void consumers_sync() { named_barrier_sync(kConsumerBarrier, kConsumerThreads); }

// ---- load ----

template <class V>
DEVICE void load_gradient(const WgradParameters& parameters, const Box& box, int first_filter, const Turn& at) {
    bool has_z = parameters.arguments.norm.b != nullptr;
    SmemAddress full = V::gradient_full(at.slot);
    mbarrier_wait(V::gradient_empty(at.slot), at.parity ^ 1);
    mbarrier_arrive_expect_tx(full, has_z ? V::kGradientBytes : V::kGradientBytes / 2);
    for (int slice = 0; slice < V::kFilterSlices; ++slice) {
        int filter = first_filter + slice * kSliceChannels;
        tma_load_4d(V::g(at.slot, slice), parameters.g, full, filter, box.column, box.row, box.image);
        if (has_z) tma_load_4d(V::z(at.slot, slice), parameters.z, full, filter, box.column, box.row, box.image);
    }
}

template <class V>
DEVICE void load_input(const WgradParameters& parameters, const Box& box, int first_channel, const Turn& at) {
    int stride = parameters.arguments.stride;
    mbarrier_wait(V::input_empty(at.slot), at.parity ^ 1);
    mbarrier_arrive_expect_tx(V::input_full(at.slot), V::kInputBytes);
    for (int slice = 0; slice < kTileSlices; ++slice)
        tma_load_4d(V::input(at.slot, slice), parameters.x, V::input_full(at.slot),
                    first_channel + slice * kSliceChannels, box.column * stride, box.row * stride, box.image);
}

template <class V>
DEVICE void load_operands(const WgradParameters& parameters) {
    const WgradArguments& arguments = parameters.arguments;
    Share share = share_of<V>(arguments);
    int use = 0;
    for (int tile = share.split; tile < arguments.tiles.count(); tile += arguments.splits, ++use) {
        Box box = arguments.tiles.first(tile);
        load_gradient<V>(parameters, box, share.first_filter, turn<V::kGradientSlots>(use));
        load_input<V>(parameters, box, share.first_channel, turn<V::kInputSlots>(use));
    }
}

// ---- prologues ----

// The activations of x, in its place; zeros where there is no pixel.
template <class V>
DEVICE void make_activations(const WgradArguments& arguments, const Box& box, int first_channel, int slot, int thread) {
    constexpr int kColumns = kTileChannels / kChunkChannels, kRows = kConsumerThreads / kColumns;
    int column = thread % kColumns, channel = first_channel + column * kChunkChannels;
    Floats8 scale = {}, shift = {};
    if (channel < arguments.channels) {
        scale = load_floats8(arguments.in_scale + channel);
        shift = load_floats8(arguments.in_shift + channel);
    }
#pragma unroll 4
    for (int pixel = thread / kColumns; pixel < kTilePixels; pixel += kRows) {
        SmemAddress at = chunk_address(V::input(slot, column / 8), pixel, column % 8);
        Chunk a = {};
        if (arguments.tiles.inside(box, pixel))
            a = narrow<V::kType>(scale_shift_relu(widen<V::kType>(load_shared<Chunk>(at)), scale, shift));
        store_shared(at, a);
    }
}

// Of a thread's two filters, both of a pair of pixels alike.
struct NormVectors {
    Floats2 a[2] = {}, b[2] = {}, c[2] = {};

    DEVICE NormVectors(const WgradArguments& arguments, int first_filter) {
#pragma unroll
        for (int eight = 0; eight < 2; ++eight) {
            int filter = first_filter + 8 * eight + lane_index() / 4;
            if (filter >= arguments.filters) continue;
            auto both = [&](const float* vector) { return Floats2{{vector[filter], vector[filter]}}; };
            a[eight] = both(arguments.norm.a);
            if (!arguments.norm.b) continue;
            b[eight] = both(arguments.norm.b);
            c[eight] = both(arguments.norm.c);
        }
    }
};

// This lane's row of 16 pixels x 16 filters for load_matrix_x4_trans, whose 8x8 matrices then are operand A's
// registers.
DEVICE SmemAddress transposed_row(SmemAddress slice, int pixel, int chunk) {
    return chunk_address(slice, pixel + lane_index() / 16 * 8 + lane_index() % 8, chunk + lane_index() / 8 % 2);
}

// dz of a warp's 16 filters and the tile's pixels, transposed.
struct Gradient {
    uint32_t fragment[kSteps][4];
};

template <class V>
DEVICE void make_gradient(Gradient& dz, const NormVectors& norm, bool has_z, int slot, int filter_slice, int warp) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
        uint32_t g[4], z[4] = {};
        load_matrix_x4_trans(transposed_row(V::g(slot, filter_slice), 16 * step, 2 * warp), g);
        if (has_z) load_matrix_x4_trans(transposed_row(V::z(slot, filter_slice), 16 * step, 2 * warp), z);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            dz.fragment[step][i] =
                kernels::bn_backward<V::kType>(g[i], z[i], norm.a[i % 2], norm.b[i % 2], norm.c[i % 2]);
    }
}

// ---- multiply ----

template <class V>
DEVICE void multiply_tile(float (&d)[V::kProducts], const Gradient& dz, SmemAddress input, bool first_tile) {
    uint64_t pixels = matrix_descriptor(input, kSliceBytes, kAtomBytes, Swizzle::k128B);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
        wgmma_rs<V::kType, V::kConsumerChannels, Major::kMN>(
            d, dz.fragment[step], advanced(pixels, step * kStepRowsBytes), !first_tile || step > 0);
    wgmma_commit();
    wgmma_wait<0>();
    settled(d);
}

template <class V>
DEVICE void write_products(const float (&d)[V::kProducts], const WgradArguments& arguments, int split, int first_filter,
                           int first_channel) {
    float* row = arguments.partials + int64_t{split} * arguments.filters * arguments.channels;
#pragma unroll
    for (int i = 0; i < V::kProducts; i += 2) {
        int filter = first_filter + lane_index() / 4 + i / 2 % 2 * 8;
        int channel = first_channel + i / 4 * 8 + lane_index() % 4 * 2;
        if (filter >= arguments.filters || channel >= arguments.channels) continue;
        *reinterpret_cast<Floats2*>(row + int64_t{filter} * arguments.channels + channel) = Floats2{{d[i], d[i + 1]}};
    }
}

template <class V>
DEVICE void consume_tiles(const WgradArguments& arguments, int consumer) {
    Share share = share_of<V>(arguments);
    int thread = thread_index() - kWarpgroup, warp = thread % kWarpgroup / 32;
    int filter_slice = V::filter_slice(consumer), channel_slice = V::channel_slice(consumer);
    int first_filter = share.first_filter + filter_slice * kSliceChannels + warp * 16;
    NormVectors norm(arguments, first_filter);
    float d[V::kProducts];
    int use = 0;
#pragma unroll 1
    for (int tile = share.split; tile < arguments.tiles.count(); tile += arguments.splits, ++use) {
        Turn gradient = turn<V::kGradientSlots>(use), input = turn<V::kInputSlots>(use);
        Gradient dz;
        mbarrier_wait(V::gradient_full(gradient.slot), gradient.parity);
        make_gradient<V>(dz, norm, arguments.norm.b != nullptr, gradient.slot, filter_slice, warp);
        fence_proxy_async();  // read by these threads, written by TMA next
        warp_sync();
        release(V::gradient_empty(gradient.slot));
        mbarrier_wait(V::input_full(input.slot), input.parity);
        if (arguments.in_scale) {
            make_activations<V>(arguments, arguments.tiles.first(tile), share.first_channel, input.slot, thread);
            fence_proxy_async();
            consumers_sync();
        }
        multiply_tile<V>(d, dz, V::input(input.slot, channel_slice), use == 0);
        release(V::input_empty(input.slot));
    }
    write_products<V>(d, arguments, share.split, first_filter, share.first_channel + channel_slice * kSliceChannels);
}

// ---- kernel ----

template <class V>
DEVICE void prepare_operands() {
    if (thread_index() == 0) {
        for (int slot = 0; slot < V::kGradientSlots; ++slot) {
            mbarrier_init(V::gradient_full(slot), 1);
            mbarrier_init(V::gradient_empty(slot), kConsumerWarps);
        }
        for (int slot = 0; slot < V::kInputSlots; ++slot) {
            mbarrier_init(V::input_full(slot), 1);
            mbarrier_init(V::input_empty(slot), kConsumerWarps);
        }
        mbarrier_init_fence();
    }
    cta_sync();
}

template <ElementType kType, int kFilters>
__global__ void __launch_bounds__(kThreads, 1)
    conv1x1_wgrad_kernel(const __grid_constant__ WgradParameters parameters) {
    using V = WgradVariant<kType, kFilters>;
    prepare_operands<V>();
    int warpgroup = warp_uniform(thread_index() / kWarpgroup);
    if (warpgroup == 0) {
        register_budget_decrease<40>();
        if (thread_index() == 0) load_operands<V>(parameters);
    } else {
        register_budget_increase<232>();
        consume_tiles<V>(parameters.arguments, warpgroup - 1);
    }
}

}  // namespace conv1x1_wgrad
