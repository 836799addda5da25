#include "kernels/passes/global_avg_pool.cuh"
#include "kernels/passes/runs.h"

namespace launch {

using namespace kernels;

void global_avg_pool(Pointer x, Pointer y, int element_type, int64_t n, int64_t h, int64_t w, int64_t c,
                     Pointer stream) {
    Call call("global_avg_pool", {n, h, w, c});
    call.map("x", n, h, w, c);
    GlobalAvgPool p = {call.aligned<const uint16_t>("x", x), call.aligned<uint16_t>("y", y),
                       tiles_of_pixels(as_int(n * h * w), as_int(c), as_int(h * w))};
    with_element_type(call, element_type, [&]<ElementType kType>() {
        run_dependent<GlobalAvgPool>(call, kernels::global_avg_pool<kType>, p, p.tiles.blocks(), kThreads, kSumBytes,
                                     stream);
    });
}

}  // namespace launch
