#include <algorithm>
#include <bit>

#include "kernels/conv1x1/products/kernel.cuh"
#include "kernels/conv1x1/products/launch.h"
#include "launch/hopper.h"

namespace launch {

using namespace conv1x1_products;

namespace {

constexpr int kNarrowChannels = 64, kWideChannels = 128;  // of a block

struct Tensors {
    const uint16_t *grad, *out, *z, *weight;
    uint16_t* t;
    int n, h, w;
};

int64_t strided(int64_t extent, int64_t stride) { return (extent - 1) / stride + 1; }

Problem make_problem(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    call.map("z", n, h, w, c);
    call.map("grad", n, strided(h, stride), strided(w, stride), k);
    call.require(k <= kMaxRanks * kBlockFilters, std::to_string(k) + " filters are more than the " +
                                                     std::to_string(kMaxRanks * kBlockFilters) +
                                                     " whose products a cluster of blocks can hold");
    return {make_tiles(as_int(n), as_int(strided(h, stride)), as_int(strided(w, stride)), as_int(stride)), as_int(c),
            as_int(k), as_int(stride)};
}

// Blocks to a cluster: a power of two, for equal shares of a tile's pixels.
int cluster_ranks(const Problem& p) {
    int ranks = 1;
    while (ranks * kBlockFilters < p.filters) ranks *= 2;
    return ranks;
}

// Calls `choose` with the channels of a block, and whether it is one of a cluster, as constants.
template <class Choose>
auto with_variant(const Problem& p, Choose choose) {
    if (p.filters > kBlockFilters) return choose.template operator()<kWideChannels, true>();
    if (p.channels > kNarrowChannels) return choose.template operator()<kWideChannels, false>();
    return choose.template operator()<kNarrowChannels, false>();
}

template <ElementType kType, int kChannels, bool kClusters>
void run_kernel(const Call& call, const Tensors& tensors, const Arguments& arguments, int rows, Pointer stream) {
    using V = Variant<kType, kChannels, kClusters>;
    const Problem& p = arguments.problem;
    int ranks = cluster_ranks(p);
    MapShape gradient = map_shape(p.tiles, p.filters);
    Parameters parameters = {
        tensor_map(call, "grad", tensors.grad, gradient, kType),
        tensor_map(call, "out", tensors.out ? tensors.out : tensors.grad, gradient, kType),
        tensor_map(call, "z", tensors.z, map_shape(p.tiles, tensors.n, tensors.h, tensors.w, p.channels, p.stride),
                   kType),
        tensor_map(call, "weight", tensors.weight, matrix_shape(p.filters, p.channels, kBlockFilters), kType),
        tensor_map(call, "t", tensors.t, map_shape(p.tiles, p.channels, kTileLog2 - std::countr_zero(unsigned(ranks))),
                   kType),
        arguments};
    count_loads(parameters.grad);
    auto kernel = conv1x1_products_kernel<kType, kChannels, kClusters>;
    allow_shared_memory(call, kernel, V::kSharedBytes);
    run_clusters<Parameters>(call, kernel, parameters, rows * V::channel_blocks(p) * ranks, kThreads, V::kSharedBytes,
                             stream, ranks);
}

void sum_rows(const Call& call, const float* partials, float* products, int64_t rows, int64_t count, Pointer stream) {
    SumRows parameters = {partials, products, as_int(rows), as_int(count)};
    int64_t blocks = (count / 4 + kSumThreads - 1) / kSumThreads;
    run<SumRows>(call, sum_products_kernel, parameters, as_int(blocks), kSumThreads, 0, stream);
}

}  // namespace

void conv1x1_products(Pointer grad, Pointer out, Pointer z, Pointer in_scale, Pointer in_shift, Pointer center,
                      Pointer weight, Pointer t, Pointer products, Pointer partials, int64_t rows, int element_type,
                      int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride, Pointer stream) {
    Call call("conv1x1_products", {n, h, w, c, k});
    Arguments arguments = {};
    arguments.problem = make_problem(call, n, h, w, c, k, stride);
    call.require((in_scale == 0) == (in_shift == 0), "one of in_scale and in_shift is missing");
    call.rows("partials", rows, k * (c + 1));
    call.require(rows <= arguments.problem.tiles.count(), "partials has " + std::to_string(rows) + " rows for " +
                                                              std::to_string(arguments.problem.tiles.count()) +
                                                              " tiles; a block without a tile has nothing to leave");
    arguments.in_scale = call.aligned_or_null<const float>("in_scale", in_scale);
    arguments.in_shift = call.aligned_or_null<const float>("in_shift", in_shift);
    arguments.center = call.aligned<const float>("center", center);
    arguments.has_out = out != 0;
    arguments.partials = call.aligned<float>("partials", partials);
    float* sums = call.aligned<float>("products", products);
    Tensors tensors = {call.aligned<const uint16_t>("grad", grad),
                       call.aligned_or_null<const uint16_t>("out", out),
                       call.aligned<const uint16_t>("z", z),
                       call.aligned<const uint16_t>("weight", weight),
                       call.aligned<uint16_t>("t", t),
                       as_int(n),
                       as_int(h),
                       as_int(w)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        with_variant(arguments.problem, [&]<int kChannels, bool kClusters>() {
            run_kernel<kType, kChannels, kClusters>(call, tensors, arguments, as_int(rows), stream);
        });
    });
    sum_rows(call, arguments.partials, sums, rows, k * (c + 1), stream);
}

int64_t conv1x1_products_rows(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t stride) {
    Call call("conv1x1_products_rows", {n, h, w, c, k});
    Problem problem = make_problem(call, n, h, w, c, k, stride);
    return with_variant(problem, [&]<int kChannels, bool kClusters>() -> int64_t {
        using V = Variant<ElementType::kBf16, kChannels, kClusters>;
        auto kernel = conv1x1_products_kernel<ElementType::kBf16, kChannels, kClusters>;
        int clusters = resident_clusters(call, kernel, kThreads, V::kSharedBytes, cluster_ranks(problem));
        return std::clamp(clusters / V::channel_blocks(problem), 1, problem.tiles.count());
    });
}

}  // namespace launch
