#include <algorithm>

#include "kernels/conv3x3/forward/maps.h"
#include "kernels/conv3x3/split/kernel.cuh"
#include "kernels/conv3x3/split/launch.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv3x3_halo_split;

namespace {

// A block of a small tile brings the weights of 64 filters for 64 pixels, one of a whole tile for 128 or more: for as
// many products it moves twice the bytes, or more.
constexpr int64_t kCostOfSmallTiles = 2;

struct Tensors {
    const uint16_t *x, *weight, *residual;
    uint16_t* y;
};

Problem make_split_problem(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    call.map("x", n, h, w, c);
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    call.require(c % kSliceChannels == 0, std::to_string(c) + " channels are no multiple of 64");
    Problem problem = make_problem(as_int(n), as_int(h), as_int(w), as_int(stride));
    call.map("y", n, problem.out_height, problem.out_width, k);
    call.require(k % kFilterTile == 0, std::to_string(k) + " filters are no multiple of 64");
    return problem;
}

int64_t split_tiles(const Problem& problem, int64_t filters) {
    return split_tile_count<SplitPlan<1>>(problem, as_int(filters));  // tiles are of output pixels at either stride
}

int64_t ceil_divided(int64_t dividend, int64_t divisor) { return (dividend + divisor - 1) / divisor; }

template <ElementType kType, int kStride>
void run_kernel(const Call& call, const Tensors& tensors, SplitParameters& parameters, Pointer stream) {
    using P = SplitPlan<kStride>;
    const Problem& problem = parameters.arguments.problem;
    int channels = parameters.channels, filters = parameters.filters;
    MapShape output = output_shape<P>(problem, filters);
    parameters.input = tensor_map(call, "x", tensors.x, input_shape<P>(problem, false, channels), kType);
    parameters.weights =
        tensor_map(call, "weight", tensors.weight, weights_shape(channels, filters, kFilterTile), kType);
    parameters.output = tensor_map(call, "y", tensors.y, output, kType);
    parameters.residual = tensor_map(call, "residual", tensors.residual ? tensors.residual : tensors.y, output, kType);
    count_loads(parameters.input);
    promise_constant(parameters.weights, parameters.arguments.weights_ready);
    int blocks = std::min(multiprocessors(call), work_count<P>(parameters));
    auto kernel = conv3x3_halo_split_kernel<kType, kStride>;
    allow_shared_memory(call, kernel, P::kSharedBytes);
    run_dependent<SplitParameters>(call, kernel, parameters, blocks, kSplitThreads, P::kSharedBytes, stream);
}

void split(const Call& call, SplitParameters& parameters, Pointer products, Pointer arrivals, int64_t splits) {
    int slices = parameters.channels / kSliceChannels;
    call.require(splits >= 1 && splits <= slices, "splits is " + std::to_string(splits) +
                                                      ", and must be between 1 and the " + std::to_string(slices) +
                                                      " slices of 64 channels");
    parameters.splits = as_int(splits);
    if (splits == 1) return;
    call.rows("products", split_tiles(parameters.arguments.problem, parameters.filters) * splits, kSplitProducts);
    parameters.products = call.aligned<float>("products", products);
    parameters.arrivals = call.aligned<uint32_t>("arrivals", arrivals);
}

}  // namespace

void conv3x3_halo_split_act(Pointer x, Pointer weight, Pointer scale, Pointer shift, Pointer residual, Pointer y,
                            Pointer products, Pointer arrivals, int64_t splits, int element_type, int64_t n, int64_t h,
                            int64_t w, int64_t c, int64_t k, int64_t stride, bool relu, bool weights_ready,
                            Pointer stream) {
    Call call("conv3x3_halo_split_act", {n, h, w, c});
    SplitParameters parameters = {};
    Arguments& arguments = parameters.arguments;
    arguments.problem = make_split_problem(call, n, h, w, c, k, stride);
    call.require((scale == 0) == (shift == 0), "one of scale and shift is missing");
    arguments.scale = call.aligned_or_null<const float>("scale", scale);
    arguments.shift = call.aligned_or_null<const float>("shift", shift);
    arguments.relu = relu;
    arguments.has_residual = residual != 0;
    arguments.weights_ready = weights_ready;
    parameters.channels = as_int(c);
    parameters.filters = as_int(k);
    split(call, parameters, products, arrivals, splits);
    Tensors tensors = {call.aligned<const uint16_t>("x", x), call.aligned<const uint16_t>("weight", weight),
                       call.aligned_or_null<const uint16_t>("residual", residual), call.aligned<uint16_t>("y", y)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        if (stride == 1)
            run_kernel<kType, 1>(call, tensors, parameters, stream);
        else
            run_kernel<kType, 2>(call, tensors, parameters, stream);
    });
}

int64_t conv3x3_halo_split_tiles(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    Problem problem = make_split_problem(Call("conv3x3_halo_split_tiles", {n, h, w, c}), n, h, w, c, k, stride);
    return split_tiles(problem, k);
}

int64_t conv3x3_halo_splits(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    Call call("conv3x3_halo_splits", {n, h, w, c});
    Problem problem = make_split_problem(call, n, h, w, c, k, stride);
    int64_t processors = multiprocessors(call), tiles = split_tiles(problem, k);
    // What the busiest multiprocessor has to do, in small tiles' worth of products.
    int whole_rows = choose(as_int(k), as_int(stride)).tile_rows;
    int64_t whole_tile = int64_t{whole_rows} / kSplitTileRows * (k / kFilterTile);
    int64_t whole = ceil_divided(tile_count(problem, whole_rows), processors) * whole_tile;
    if (whole <= kCostOfSmallTiles * ceil_divided(tiles, processors)) return 0;
    return std::clamp<int64_t>(processors / tiles, 1, c / kSliceChannels);
}

}  // namespace launch
