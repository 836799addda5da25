#include <algorithm>

#include "kernels/conv1x1/gram/exact.cuh"
#include "kernels/conv1x1/gram/kernel.cuh"
#include "kernels/conv1x1/gram/launch.h"
#include "kernels/conv1x1/gram/sum.cuh"
#include "launch/hopper.h"

namespace launch {

using namespace conv1x1_gram;

namespace {

constexpr int kNarrowChannels = 64, kWideChannels = 128;  // of a block

struct Extents {
    int n, h, w;
};

int64_t strided(int64_t extent, int64_t stride) { return (extent - 1) / stride + 1; }

Problem make_problem(const Call& call, int64_t n, int64_t h, int64_t w, int64_t c, int64_t stride) {
    call.require(stride == 1 || stride == 2, "stride " + std::to_string(stride) + " is neither 1 nor 2");
    call.map("z", n, h, w, c);
    return {make_tiles(as_int(n), as_int(strided(h, stride)), as_int(strided(w, stride)), as_int(stride)), as_int(c),
            as_int(stride)};
}

// Calls `choose` with the channels of a block as a constant.
template <class Choose>
void with_channels(const Problem& p, Choose choose) {
    if (p.channels > kNarrowChannels) return choose.template operator()<kWideChannels>();
    choose.template operator()<kNarrowChannels>();
}

template <ElementType kType, int kChannels>
void run_kernel(const Call& call, const uint16_t* z, const Extents& map, const Arguments& arguments, int rows,
                Pointer stream) {
    using V = Variant<kType, kChannels>;
    const Problem& p = arguments.problem;
    Parameters parameters = {
        tensor_map(call, "z", z, map_shape(p.tiles, map.n, map.h, map.w, p.channels, p.stride), kType), arguments};
    count_loads(parameters.z);
    auto kernel = conv1x1_gram_kernel<kType, kChannels>;
    allow_shared_memory(call, kernel, V::kSharedBytes);
    run<Parameters>(call, kernel, parameters, rows * V::pairs(p), kThreads, V::kSharedBytes, stream);
}

}  // namespace

void conv1x1_gram(Pointer z, Pointer in_scale, Pointer in_shift, Pointer center, Pointer total, Pointer gram,
                  Pointer partials, int64_t rows, int element_type, int64_t n, int64_t h, int64_t w, int64_t c,
                  int64_t stride, Pointer stream) {
    Call call("conv1x1_gram", {n, h, w, c});
    Problem problem = make_problem(call, n, h, w, c, stride);
    int tiles = problem.tiles.count();
    call.require((in_scale == 0) == (in_shift == 0), "one of in_scale and in_shift is missing");
    call.rows("partials", rows, c * (c + 1));
    call.require(rows <= tiles, "partials has " + std::to_string(rows) + " rows for " + std::to_string(tiles) +
                                    " tiles; a share without a tile has nothing to leave");
    Arguments arguments = {problem,
                           {call.aligned_or_null<const float>("in_scale", in_scale),
                            call.aligned_or_null<const float>("in_shift", in_shift)},
                           call.aligned<float>("center", center),
                           call.aligned<float>("partials", partials)};
    SumGram sums = {arguments.partials,
                    call.aligned<float>("total", total),
                    call.aligned<float>("gram", gram),
                    as_int(rows),
                    as_int(c),
                    0};
    const uint16_t* map = call.aligned<const uint16_t>("z", z);
    Extents extents = {as_int(n), as_int(h), as_int(w)};
    with_channels(problem, [&]<int kChannels>() {
        with_element_type(call, element_type, [&]<ElementType kType>() {
            run_kernel<kType, kChannels>(call, map, extents, arguments, as_int(rows), stream);
        });
        sums.block = kChannels;
    });
    run<SumGram>(call, sum_gram_kernel, sums, sums.blocks(), kSumThreads, RowSums::kBytes, stream);
}

void conv1x1_gram_exact(Pointer z, Pointer in_scale, Pointer in_shift, Pointer center, Pointer flag, Pointer partials,
                        int64_t rows, int element_type, int64_t n, int64_t h, int64_t w, int64_t c, int64_t stride,
                        Pointer stream) {
    Call call("conv1x1_gram_exact", {n, h, w, c});
    make_problem(call, n, h, w, c, stride);
    call.require((in_scale == 0) == (in_shift == 0), "one of in_scale and in_shift is missing");
    call.require(flag != 0, "flag is missing");
    call.rows("partials", rows, c * (c + 1));
    ::conv1x1_gram_exact::Problem problem = {reinterpret_cast<const int*>(flag),
                                             call.aligned<const uint16_t>("z", z),
                                             {call.aligned_or_null<const float>("in_scale", in_scale),
                                              call.aligned_or_null<const float>("in_shift", in_shift)},
                                             call.aligned<const float>("center", center),
                                             call.aligned<double>("partials", partials),
                                             as_int(n),
                                             as_int(h),
                                             as_int(w),
                                             as_int(c),
                                             as_int(stride),
                                             as_int(rows)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        run<::conv1x1_gram_exact::Problem>(call, ::conv1x1_gram_exact::gram_exact_kernel<kType>, problem,
                                           problem.blocks(), ::conv1x1_gram_exact::kThreads,
                                           ::conv1x1_gram_exact::kSharedBytes, stream);
    });
}

int64_t conv1x1_gram_exact_rows(int64_t n, int64_t h, int64_t w, int64_t c, int64_t stride) {
    namespace exact = ::conv1x1_gram_exact;
    make_problem(Call("conv1x1_gram_exact_rows", {n, h, w, c}), n, h, w, c, stride);
    exact::Problem problem = {nullptr,   nullptr,   {},        nullptr,        nullptr, as_int(n),
                              as_int(h), as_int(w), as_int(c), as_int(stride), 1};
    return std::clamp(exact::kBlocksWanted / problem.blocks(), 1, problem.groups());
}

int64_t conv1x1_gram_rows(int64_t n, int64_t h, int64_t w, int64_t c, int64_t stride) {
    Call call("conv1x1_gram_rows", {n, h, w, c});
    Problem problem = make_problem(call, n, h, w, c, stride);
    int pairs = 0;
    with_channels(problem, [&]<int kChannels>() { pairs = Variant<ElementType::kBf16, kChannels>::pairs(problem); });
    return std::clamp(multiprocessors(call) / pairs, 1, problem.tiles.count());
}

}  // namespace launch
