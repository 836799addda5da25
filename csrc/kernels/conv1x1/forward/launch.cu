#include <algorithm>

#include "kernels/conv1x1/forward/kernel.cuh"
#include "kernels/conv1x1/forward/launch.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv1x1;

namespace {

constexpr int kNarrowFilters = kSplitFilters, kWideFilters = 128;  // of a tile
constexpr int64_t kSlicesWorthSplitting = 4;                       // of 64 channels a block, at least

struct Tensors {
    const uint16_t *x, *weight, *residual;
    uint16_t* y;
    int n, h, w;
};

int64_t strided(int64_t extent, int64_t stride) { return (extent - 1) / stride + 1; }

int64_t ceil_divided(int64_t dividend, int64_t divisor) { return (dividend + divisor - 1) / divisor; }

// What every launcher refuses.
void check_shape(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    call.map("x", n, h, w, c);
    call.map("the output", n, strided(h, stride), strided(w, stride), k);
    call.map("weight", 1, 1, k, c);
}

Tiles tiles_of(int64_t n, int64_t h, int64_t w, int64_t stride) {
    return make_tiles(as_int(n), as_int(strided(h, stride)), as_int(strided(w, stride)), as_int(stride));
}

template <ElementType kType, int kFilters, Epilogue kEpilogue, bool kPrologue>
void run_kernel(const Call& call, const Tensors& tensors, const Arguments& arguments, Pointer stream) {
    using V = Variant<kType, kFilters, kEpilogue, kPrologue>;
    const Problem& p = arguments.problem;
    MapShape input = map_shape(p.tiles, tensors.n, tensors.h, tensors.w, p.channels, p.stride);
    MapShape output = map_shape(p.tiles, p.filters);
    Parameters parameters = {
        tensor_map(call, "x", tensors.x, input, kType),
        tensor_map(call, "weight", tensors.weight, matrix_shape(p.filters, p.channels, kFilters), kType),
        tensor_map(call, "the output", tensors.y, output, kType),
        tensor_map(call, "the residual", tensors.residual ? tensors.residual : tensors.y, output, kType), arguments};
    count_loads(parameters.input);
    promise_constant(parameters.weights, arguments.weights_ready);
    int blocks = std::min(multiprocessors(call), V::work_count(p));
    auto kernel = conv1x1_kernel<kType, kFilters, kEpilogue, kPrologue>;
    allow_shared_memory(call, kernel, V::kSharedBytes);
    run_dependent<Parameters>(call, kernel, parameters, blocks, kThreads, V::kSharedBytes, stream);
}

// Narrow tiles where there are few: for few filters, and for small maps, whose wide tiles would leave processors idle.
bool takes_narrow_tiles(const Call& call, const Problem& p) {
    if (p.splits > 1 || p.filters <= kNarrowFilters) return true;
    return int64_t{p.tiles.count()} * ceil_divided(p.filters, kWideFilters) < multiprocessors(call);
}

template <Epilogue kEpilogue>
void run_convolution(const Call& call, const Tensors& tensors, const Arguments& arguments, int element_type,
                     Pointer stream) {
    bool is_narrow = takes_narrow_tiles(call, arguments.problem);
    with_element_type(call, element_type, [&]<ElementType kType>() {
        auto with_filters = [&]<bool kPrologue>() {
            if (is_narrow)
                run_kernel<kType, kNarrowFilters, kEpilogue, kPrologue>(call, tensors, arguments, stream);
            else
                run_kernel<kType, kWideFilters, kEpilogue, kPrologue>(call, tensors, arguments, stream);
        };
        if (arguments.in_scale) return with_filters.template operator()<true>();
        with_filters.template operator()<false>();
    });
}

Arguments common_arguments(const Call& call, Pointer in_scale, Pointer in_shift, int64_t n, int64_t h, int64_t w,
                           int64_t c, int64_t k, int64_t stride) {
    check_shape(call, n, h, w, c, k, stride);
    call.require((in_scale == 0) == (in_shift == 0), "one of in_scale and in_shift is missing");
    Arguments arguments = {};
    arguments.problem = {tiles_of(n, h, w, stride), as_int(c), as_int(k), as_int(stride), 1};
    arguments.in_scale = call.aligned_or_null<const float>("in_scale", in_scale);
    arguments.in_shift = call.aligned_or_null<const float>("in_shift", in_shift);
    return arguments;
}

void split(const Call& call, Arguments& arguments, Pointer products, Pointer arrivals, int64_t splits) {
    call.require(splits >= 1 && splits <= slice_count(arguments.problem),
                 "splits is " + std::to_string(splits) + ", and must be between 1 and the " +
                     std::to_string(slice_count(arguments.problem)) + " slices of 64 channels");
    if (splits == 1) return;
    call.require(arguments.in_scale == nullptr,
                 "splits is " + std::to_string(splits) + ", and with in_scale and in_shift it must be 1");
    arguments.problem.splits = as_int(splits);
    arguments.products = call.aligned<float>("products", products);
    arguments.arrivals = call.aligned<uint32_t>("arrivals", arrivals);
}

}  // namespace

void conv1x1_act(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift, Pointer scale, Pointer shift,
                 Pointer residual, Pointer y, Pointer products, Pointer arrivals, int64_t splits, int element_type,
                 int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride, bool relu, bool weights_ready,
                 Pointer stream) {
    Call call("conv1x1_act", {n, h, w, c, k});
    Arguments arguments = common_arguments(call, in_scale, in_shift, n, h, w, c, k, stride);
    arguments.scale = call.aligned<const float>("scale", scale);
    arguments.shift = call.aligned<const float>("shift", shift);
    arguments.relu = relu;
    arguments.has_residual = residual != 0;
    arguments.weights_ready = weights_ready;
    split(call, arguments, products, arrivals, splits);
    Tensors tensors = {call.aligned<const uint16_t>("x", x),
                       call.aligned<const uint16_t>("weight", weight),
                       call.aligned_or_null<const uint16_t>("the residual", residual),
                       call.aligned<uint16_t>("y", y),
                       as_int(n),
                       as_int(h),
                       as_int(w)};
    run_convolution<Epilogue::kScaleShiftAct>(call, tensors, arguments, element_type, stream);
}

void conv1x1_stats(Pointer x, Pointer weight, Pointer in_scale, Pointer in_shift, Pointer z, Pointer partials,
                   int element_type, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride,
                   Pointer stream) {
    Call call("conv1x1_stats", {n, h, w, c, k});
    Arguments arguments = common_arguments(call, in_scale, in_shift, n, h, w, c, k, stride);
    arguments.partials = call.aligned<float>("partials", partials);
    Tensors tensors = {call.aligned<const uint16_t>("x", x),
                       call.aligned<const uint16_t>("weight", weight),
                       nullptr,
                       call.aligned<uint16_t>("z", z),
                       as_int(n),
                       as_int(h),
                       as_int(w)};
    run_convolution<Epilogue::kStatistics>(call, tensors, arguments, element_type, stream);
}

int64_t conv1x1_partial_rows(int64_t n, int64_t h, int64_t w, int64_t stride) {
    check_shape(Call("conv1x1_partial_rows", {n, h, w}), n, h, w, 8, 8, stride);
    return tiles_of(n, h, w, stride).count();
}

int64_t conv1x1_split_tiles(int64_t n, int64_t h, int64_t w, int64_t k, int64_t stride) {
    check_shape(Call("conv1x1_split_tiles", {n, h, w, k}), n, h, w, 8, k, stride);
    return tiles_of(n, h, w, stride).count() * ceil_divided(k, kNarrowFilters);
}

int64_t conv1x1_splits(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    Call call("conv1x1_splits", {n, h, w, c, k});
    check_shape(call, n, h, w, c, k, stride);
    int64_t most = ceil_divided(c, kSliceChannels) / kSlicesWorthSplitting;
    return std::clamp<int64_t>(multiprocessors(call) / conv1x1_split_tiles(n, h, w, k, stride), 1,
                               std::max<int64_t>(most, 1));
}

}  // namespace launch
