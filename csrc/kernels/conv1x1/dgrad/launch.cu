#include <algorithm>

#include "kernels/conv1x1/dgrad/kernel.cuh"
#include "kernels/conv1x1/dgrad/launch.h"
#include "launch/dgrad_tensors.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv1x1_dgrad;

namespace {

// dx, and how far the convolution and the shortcut step over it.
struct Extents {
    int n, h, w, stride, skip_stride;

    int step() const { return std::max(stride, skip_stride); }
    int row_phases() const { return std::min(step(), h); }
    int column_phases() const { return std::min(step(), w); }
    // Where the pixels of a phase begin.
    int row(int phase) const { return phase / column_phases(); }
    int column(int phase) const { return phase % column_phases(); }
};

Extents make_extents(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c, int64_t stride,
                     int64_t skip_stride) {
    call.map("dx", n, h, w, c);
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    call.require(skip_stride == 1 || skip_stride == 2,
                 "skip_stride " + std::to_string(skip_stride) + " is neither 1 nor 2");
    return {as_int(n), as_int(h), as_int(w), as_int(stride), as_int(skip_stride)};
}

int count_after(int extent, int first, int step) { return (extent - first + step - 1) / step; }

// The phases, as the kernel walks over them.
void put_phases(DgradArguments& arguments, const Extents& extents) {
    int step = extents.step();
    Tiles tiles = make_tiles(extents.n, count_after(extents.h, 0, step), count_after(extents.w, 0, step), step);
    arguments.phases = extents.row_phases() * extents.column_phases();
    for (int i = 0; i < arguments.phases; ++i) {
        Phase& phase = arguments.phase[i];
        phase.tiles = tiles;
        if (step > 1) {
            phase.tiles.rows = count_after(extents.h, extents.row(i), step);
            phase.tiles.columns = count_after(extents.w, extents.column(i), step);
        }
        phase.slices = i == 0 || extents.stride == 1 ? count_after(arguments.filters, 0, kSliceChannels) : 0;
        phase.has_skip = i == 0 || extents.skip_stride == 1;
    }
}

// Of a tensor that lies as dx does, the pixels of a phase.
TensorMap phase_map(const Call& call, const char* what, const uint16_t* base, const Phase& phase, int index,
                    const Extents& extents, int channels, ElementType type) {
    MapShape shape = map_shape(phase.tiles, channels);
    if (extents.step() > 1) {
        int64_t row = int64_t{extents.w} * channels;
        shape.pitch = {1, extents.step() * channels, extents.step() * row, extents.h * row};
        base += extents.row(index) * row + extents.column(index) * channels;
    }
    return tensor_map(call, what, base, shape, type);
}

PhaseMaps make_maps(const Call& call, const DgradTensors& tensors, const DgradArguments& arguments,
                    const Extents& extents, int index, ElementType type) {
    const Phase& phase = arguments.phase[index];
    auto strided = [&](const char* what, const uint16_t* base, int channels) {
        return phase_map(call, what, base ? base : tensors.dx, phase, index, extents,
                         base ? channels : arguments.channels, type);
    };
    // Where its own steps are as wide as the phases', a map holds nothing but the first phase, dense.
    auto maybe_dense = [&](const char* what, const uint16_t* base, int channels, int stride) {
        if (!base || stride < extents.step()) return strided(what, base, channels);
        return tensor_map(call, what, base, map_shape(arguments.phase[0].tiles, channels), type);
    };
    PhaseMaps maps = {maybe_dense("g", tensors.g, arguments.filters, extents.stride),
                      maybe_dense("z", tensors.z, arguments.filters, extents.stride),
                      strided("dx", tensors.dx, arguments.channels),
                      maybe_dense("skip", tensors.skip, arguments.channels, extents.skip_stride),
                      maybe_dense("skip_out", tensors.skip_out, arguments.channels, extents.skip_stride),
                      strided("below_out", tensors.below_out, arguments.channels),
                      strided("below_z", tensors.below_z, arguments.channels)};
    count_loads(maps.g);
    count_loads(maps.z);
    return maps;
}

template <ElementType kType>
void run_kernel(const Call& call, const DgradTensors& tensors, const DgradArguments& arguments, const Extents& extents,
                Pointer stream) {
    using V = DgradVariant<kType>;
    DgradParameters parameters = {};
    parameters.arguments = arguments;
    MapShape weight = matrix_shape(arguments.filters, arguments.channels, kSliceChannels);
    parameters.weights = tensor_map(call, "weight", tensors.weight, weight, kType);
    for (int i = 0; i < arguments.phases; ++i)
        parameters.maps[i] = make_maps(call, tensors, arguments, extents, i, kType);
    int blocks = std::min(multiprocessors(call), work_count(arguments));
    auto kernel = conv1x1_dgrad_kernel<kType>;
    allow_shared_memory(call, kernel, V::kSharedBytes);
    run<DgradParameters>(call, kernel, parameters, blocks, kThreads, V::kSharedBytes, stream);
}

EpilogueMaps number_maps(const DgradTensors& tensors) {
    EpilogueMaps maps = {};
    auto next = [&](const uint16_t* map) { return map ? maps.count++ : -1; };
    maps.skip = next(tensors.skip);
    maps.skip_out = next(tensors.skip_out);
    maps.below_out = next(tensors.below_out);
    maps.below_z = next(tensors.below_z);
    return maps;
}

}  // namespace

void conv1x1_dgrad(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c_, Pointer weight, Pointer below_z,
                   Pointer below_scale, Pointer below_shift, Pointer below_mean, Pointer below_out, Pointer skip,
                   Pointer skip_out, int64_t skip_stride, Pointer dx, Pointer partials, int element_type, int64_t n,
                   int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride, Pointer stream) {
    Call call("conv1x1_dgrad", {n, h, w, c, k});
    Extents extents = make_extents(call, n, h, w, c, stride, skip_stride);
    call.map("g", n, count_after(extents.h, 0, extents.stride), count_after(extents.w, 0, extents.stride), k);
    DgradArguments arguments = {};
    arguments.channels = as_int(c);
    arguments.filters = as_int(k);
    arguments.norm = {call.aligned<const float>("a", a), call.aligned_or_null<const float>("b", b),
                      call.aligned_or_null<const float>("c", c_)};
    arguments.below_scale = call.aligned_or_null<const float>("below_scale", below_scale);
    arguments.below_shift = call.aligned_or_null<const float>("below_shift", below_shift);
    arguments.below_mean = call.aligned_or_null<const float>("below_mean", below_mean);
    arguments.partials = call.aligned_or_null<float>("partials", partials);
    DgradTensors tensors = {call.aligned<const uint16_t>("g", g),
                            call.aligned_or_null<const uint16_t>("z", z),
                            call.aligned<const uint16_t>("weight", weight),
                            call.aligned_or_null<const uint16_t>("below_z", below_z),
                            call.aligned_or_null<const uint16_t>("below_out", below_out),
                            call.aligned_or_null<const uint16_t>("skip", skip),
                            call.aligned_or_null<const uint16_t>("skip_out", skip_out),
                            call.aligned<uint16_t>("dx", dx)};
    require_together(call, tensors, arguments);
    arguments.maps = number_maps(tensors);
    put_phases(arguments, extents);
    with_element_type(call, element_type,
                      [&]<ElementType kType>() { run_kernel<kType>(call, tensors, arguments, extents, stream); });
}

int64_t conv1x1_dgrad_partial_rows(int64_t n, int64_t h, int64_t w, int64_t stride, int64_t skip_stride) {
    Extents extents = make_extents(Call("conv1x1_dgrad_partial_rows", {n, h, w}), n, h, w, 8, stride, skip_stride);
    DgradArguments arguments = {};
    put_phases(arguments, extents);
    return partial_rows(arguments);
}

}  // namespace launch
