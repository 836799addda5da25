// The launchers of the passes that belong to no convolution: what Python calls, and what the emulation calls as Python
// does. Addresses and the stream are integers, 0 for none; maps are dense NHWC; `element_type` is an ElementType.
//
// Each checks its arguments, throws std::invalid_argument for those that the kernel does not take and
// std::runtime_error for a launch that fails, both naming the kernel, the shape and the reason, and returns without
// waiting for the device.
#pragma once
#include <cstdint>

namespace launch {

using Pointer = std::uintptr_t;

// Where it is an argument, `weights_ready` promises that no kernel which may still run writes the weights: not the one
// before this one in the stream, nor, where that is a dependent one, those before it. They are then loaded at once;
// everything else is read when the kernel before has ended.

// z, y (n, h, w, k); residual, where it is given, (n, residual_h, residual_w, residual_c).
void bn_add_act(Pointer z, Pointer scale, Pointer shift, Pointer residual, Pointer y, int element_type, int64_t n,
                int64_t h, int64_t w, int64_t k, int64_t residual_h, int64_t residual_w, int64_t residual_c,
                int64_t residual_stride, bool relu, Pointer stream);

// grad, out, z, g (n, h, w, k), out may be 0; partials (ceil(n * h * w / run), 2, k): sums over `run` pixels each.
void bn_act_backward(Pointer grad, Pointer out, Pointer z, Pointer mean, Pointer g, Pointer partials, int element_type,
                     int64_t n, int64_t h, int64_t w, int64_t k, int64_t run, Pointer stream);

// g, z, dz (n, h, w, k); z, b and c are 0 where the statistics are constants.
void bn_backward_apply(Pointer g, Pointer z, Pointer a, Pointer b, Pointer c, Pointer dz, int element_type, int64_t n,
                       int64_t h, int64_t w, int64_t k, Pointer stream);

// z (n, h, w, k); y and argmax (n, p, q, k), p and q following from the window.
void bn_relu_maxpool(Pointer z, Pointer scale, Pointer shift, Pointer y, Pointer argmax, int element_type, int64_t n,
                     int64_t h, int64_t w, int64_t k, int64_t kernel, int64_t stride, int64_t padding, Pointer stream);

// grad, argmax (n, p, q, k); z, g (n, h, w, k); partials as bn_act_backward's.
void bn_relu_maxpool_backward(Pointer grad, Pointer argmax, Pointer z, Pointer scale, Pointer shift, Pointer mean,
                              Pointer g, Pointer partials, int element_type, int64_t n, int64_t h, int64_t w, int64_t k,
                              int64_t kernel, int64_t stride, int64_t padding, int64_t run, Pointer stream);

// x (n, h, w, c); y (n, c).
void global_avg_pool(Pointer x, Pointer y, int element_type, int64_t n, int64_t h, int64_t w, int64_t c,
                     Pointer stream);

// z (n, h, w, k); partials (ceil(n * h * w / 128), 3, k).
void channel_stats(Pointer z, Pointer partials, int element_type, int64_t n, int64_t h, int64_t w, int64_t k,
                   Pointer stream);

// partials (rows, 3, k); merged (merged_rows, 3, k): each row of it merges a run of rows.
void merge_partials(Pointer partials, Pointer merged, int64_t rows, int64_t merged_rows, int64_t k, Pointer stream);

// partials (rows, 3, k); the others (k), bn_weight and bn_bias may be 0.
void bn_finalize(Pointer partials, Pointer bn_weight, Pointer bn_bias, Pointer mean, Pointer var, Pointer invstd,
                 Pointer scale, Pointer shift, double eps, int64_t rows, int64_t k, Pointer stream);

// partials (rows, 2, k); first and second (k).
void sum_partials(Pointer partials, Pointer first, Pointer second, int64_t rows, int64_t k, Pointer stream);

}  // namespace launch
