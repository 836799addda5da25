// The table of contents of fused_resnet._C: what Python can call. No torch: addresses, extents and the stream are ints.
//
// Arguments and errors are described in each launch.h: ValueError for what a kernel does not take, RuntimeError for a
// launch that fails.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "kernels/bottleneck/launch.h"
#include "kernels/conv1x1/backward/launch.h"
#include "kernels/conv1x1/dgrad/launch.h"
#include "kernels/conv1x1/forward/launch.h"
#include "kernels/conv1x1/gram/launch.h"
#include "kernels/conv1x1/gram_finish/launch.h"
#include "kernels/conv1x1/products/launch.h"
#include "kernels/conv1x1/wgrad/launch.h"
#include "kernels/conv3x3/dgrad/launch.h"
#include "kernels/conv3x3/forward/launch.h"
#include "kernels/conv3x3/split/launch.h"
#include "kernels/conv3x3/wgrad/launch.h"
#include "kernels/stem/forward/launch.h"
#include "kernels/stem/wgrad/launch.h"
#include "launch/device.h"
#include "launch/launch.h"

namespace {

// Defines launchers, and lists their kernels with what they were compiled for.
struct Kernels {
    pybind11::module_& module;
    std::map<std::string, std::string> architectures;

    template <class Launcher>
    void add(const char* name, Launcher launcher, const char* doc, const char* compiled_for = FUSED_RESNET_ARCHS) {
        module.def(name, launcher, doc);
        architectures[name] = compiled_for;
    }
};

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "CUDA C++ kernels of fused_resnet over device addresses; fused_resnet.backends.cuda calls them.";
    Kernels kernels = {module, {}};
    kernels.add("bn_add_act", launch::bn_add_act, "y = act(z * scale + shift + shortcut(residual))");
    kernels.add("bn_act_backward", launch::bn_act_backward, "g = grad where out > 0, and its partial sums");
    kernels.add("bn_backward_apply", launch::bn_backward_apply, "dz = a * g + b * z + c");
    kernels.add("bn_relu_maxpool", launch::bn_relu_maxpool, "maxpool(relu(z * scale + shift)), and each place of it");
    kernels.add("bn_relu_maxpool_backward", launch::bn_relu_maxpool_backward, "its backward, and the partial sums");
    kernels.add("global_avg_pool", launch::global_avg_pool, "the mean of each image's pixels");
    kernels.add("channel_stats", launch::channel_stats, "count, mean and M2 of every 128 pixels");
    kernels.add("merge_partials", launch::merge_partials, "many rows of count, mean and M2 merged to few");
    kernels.add("bn_finalize", launch::bn_finalize, "mean, var, invstd, scale and shift from count, mean and M2");
    kernels.add("sum_partials", launch::sum_partials, "the sums of a backward from their partial sums");

#if FUSED_RESNET_HOPPER
    const char* hopper = "sm_90a";
    kernels.add("conv3x3_halo_act", launch::conv3x3_halo_act, "y = act(conv3x3(x) * scale + shift + residual)", hopper);
    kernels.add("conv3x3_halo_split_act", launch::conv3x3_halo_split_act, "conv3x3_halo_act for few and small maps",
                hopper);
    kernels.add("conv3x3_halo_stats", launch::conv3x3_halo_stats, "z = conv3x3(x), and count, mean and M2 of it",
                hopper);
    kernels.add("conv3x3_halo_dgrad", launch::conv3x3_halo_dgrad, "the gradient of conv3x3's input, masked", hopper);
    kernels.add("conv3x3_halo_wgrad", launch::conv3x3_halo_wgrad, "the gradient of conv3x3's weight, in splits",
                hopper);
    module.def("conv3x3_halo_split_tiles", launch::conv3x3_halo_split_tiles, "Tiles of conv3x3_halo_split_act.");
    module.def("conv3x3_halo_splits", launch::conv3x3_halo_splits,
               "How many blocks should share one on the current GPU; 0: take conv3x3_halo_act.");
    module.def("conv3x3_halo_wgrad_splits", launch::conv3x3_halo_wgrad_splits, "Splits that fill the current GPU.");
    kernels.add("conv1x1_act", launch::conv1x1_act, "y = act(conv1x1(x) * scale + shift + residual)", hopper);
    kernels.add("conv1x1_stats", launch::conv1x1_stats, "z = conv1x1(x), and count, mean and M2 of it", hopper);
    kernels.add("conv1x1_products", launch::conv1x1_products, "g^T a and g weight from one read of g", hopper);
    kernels.add("conv1x1_gram", launch::conv1x1_gram, "the sum and the Gram matrix of activations", hopper);
    kernels.add("conv1x1_gram_exact", launch::conv1x1_gram_exact, "the same in float64, where a flag asks for it",
                hopper);
    kernels.add("conv1x1_gram_finish", launch::conv1x1_gram_finish,
                "g = t + a quadratic + constant, masked, and its sums", hopper);
    kernels.add("conv1x1_dgrad", launch::conv1x1_dgrad, "the gradient of conv1x1's input, masked", hopper);
    kernels.add("conv1x1_backward", launch::conv1x1_backward, "both gradients of conv1x1 from one read", hopper);
    kernels.add("conv1x1_wgrad", launch::conv1x1_wgrad, "the gradient of conv1x1's weight, in splits", hopper);
    kernels.add("bottleneck_inference", launch::bottleneck_inference, "a bottleneck block, its inner maps never stored",
                hopper);
    kernels.add("stem_act", launch::stem_act, "y = act(conv7x7(images) * scale + shift + residual)", hopper);
    kernels.add("stem_stats", launch::stem_stats, "z = conv7x7(images), and count, mean and M2 of it", hopper);
    kernels.add("stem_wgrad", launch::stem_wgrad, "the gradient of conv7x7's weight, in splits", hopper);
    module.def("stem_partial_rows", launch::stem_partial_rows, "Rows of stem_stats' partials.");
    module.def("stem_wgrad_splits", launch::stem_wgrad_splits, "Splits that fill the current GPU.");
    module.def("conv1x1_partial_rows", launch::conv1x1_partial_rows, "Rows of conv1x1_stats' partials.");
    module.def("conv1x1_split_tiles", launch::conv1x1_split_tiles, "Tiles that blocks of conv1x1_act share.");
    module.def("conv1x1_splits", launch::conv1x1_splits, "How many blocks should share a tile on the current GPU.");
    module.def("conv1x1_gram_rows", launch::conv1x1_gram_rows, "Rows of conv1x1_gram's partials.");
    module.def("conv1x1_gram_exact_rows", launch::conv1x1_gram_exact_rows, "Rows of conv1x1_gram_exact's partials.");
    module.def("conv1x1_gram_finish_rows", launch::conv1x1_gram_finish_rows, "Rows of conv1x1_gram_finish's partials.");
    module.def("conv1x1_dgrad_partial_rows", launch::conv1x1_dgrad_partial_rows, "Rows of conv1x1_dgrad's partials.");
    module.def("conv1x1_wgrad_splits", launch::conv1x1_wgrad_splits, "Splits that fill the current GPU.");
    module.def("conv1x1_backward_rows", launch::conv1x1_backward_rows, "Rows of conv1x1_backward's partials.");
    module.def("conv1x1_products_rows", launch::conv1x1_products_rows, "Rows of conv1x1_products' partials.");
#endif

    module.def(
        "kernels", [listed = kernels.architectures] { return listed; },
        "What was compiled: {kernel: the architectures it was compiled for, in nvcc's names}.");
    module.def("shared_bytes", launch::shared_bytes,
               "Dynamic shared memory of the kernels that have some; see device.h.");
    module.def("device_problem", launch::device_problem,
               "Why nothing can be launched on this machine; empty where it can.");
}
