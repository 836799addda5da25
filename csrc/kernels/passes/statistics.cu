#include "kernels/passes/runs.h"
#include "kernels/passes/statistics.cuh"

namespace launch {

using namespace kernels;

namespace {

// Partials (rows, width, k).
void check_partials(const Call& call, int64_t rows, int64_t width, int64_t k) {
    call.require(k > 0 && k % 8 == 0, std::to_string(k) + " channels are no multiple of 8");
    call.rows("partials", rows, width * k);
}

}  // namespace

void channel_stats(Pointer z, Pointer partials, int element_type, int64_t n, int64_t h, int64_t w, int64_t k,
                   Pointer stream) {
    Call call("channel_stats", {n, h, w, k});
    call.map("z", n, h, w, k);
    ChannelStats p = {call.aligned<const uint16_t>("z", z), call.aligned<float>("partials", partials),
                      runs_of_pixels(call, n * h * w, k, kStatsPixels)};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        run<ChannelStats>(call, kernels::channel_stats<kType>, p, p.tiles.blocks(), kThreads, kSumBytes, stream);
    });
}

void merge_partials(Pointer partials, Pointer merged, int64_t rows, int64_t merged_rows, int64_t k, Pointer stream) {
    Call call("merge_partials", {rows, 3, k});
    check_partials(call, rows, 3, k);
    call.rows("merged", merged_rows, 3 * k);
    MergePartials p = {call.aligned<const float>("partials", partials), call.aligned<float>("merged", merged),
                       as_int(rows), as_int(merged_rows), as_int(k)};
    run<MergePartials>(call, kernels::merge_partials, p, p.blocks(), kThreads, kMomentsBytes, stream);
}

void bn_finalize(Pointer partials, Pointer bn_weight, Pointer bn_bias, Pointer mean, Pointer var, Pointer invstd,
                 Pointer scale, Pointer shift, double eps, int64_t rows, int64_t k, Pointer stream) {
    Call call("bn_finalize", {rows, 3, k});
    check_partials(call, rows, 3, k);
    BnFinalize p = {call.aligned<const float>("partials", partials),
                    call.aligned_or_null<const float>("bn_weight", bn_weight),
                    call.aligned_or_null<const float>("bn_bias", bn_bias),
                    call.aligned<float>("mean", mean),
                    call.aligned<float>("var", var),
                    call.aligned<float>("invstd", invstd),
                    call.aligned<float>("scale", scale),
                    call.aligned<float>("shift", shift),
                    static_cast<float>(eps),
                    as_int(rows),
                    as_int(k)};
    run<BnFinalize>(call, kernels::bn_finalize, p, p.blocks(), kThreads, kMomentsBytes, stream);
}

void sum_partials(Pointer partials, Pointer first, Pointer second, int64_t rows, int64_t k, Pointer stream) {
    Call call("sum_partials", {rows, 2, k});
    check_partials(call, rows, 2, k);
    SumPartials p = {call.aligned<const float>("partials", partials), call.aligned<float>("first", first),
                     call.aligned<float>("second", second), as_int(rows), as_int(k)};
    run<SumPartials>(call, kernels::sum_partials, p, p.blocks(), kThreads, kVectorSumBytes, stream);
}

}  // namespace launch
