#include "kernels/bottleneck/plan.cuh"
#include "kernels/conv1x1/backward/plan.cuh"
#include "kernels/conv1x1/dgrad/plan.cuh"
#include "kernels/conv1x1/forward/plan.cuh"
#include "kernels/conv1x1/gram/exact.cuh"
#include "kernels/conv1x1/gram/plan.cuh"
#include "kernels/conv1x1/gram_finish/plan.cuh"
#include "kernels/conv1x1/products/plan.cuh"
#include "kernels/conv1x1/wgrad/plan.cuh"
#include "kernels/conv3x3/dgrad/plan.cuh"
#include "kernels/conv3x3/forward/plan.cuh"
#include "kernels/conv3x3/split/plan.cuh"
#include "kernels/conv3x3/wgrad/plan.cuh"
#include "kernels/passes/map_tiles.cuh"
#include "kernels/stem/forward/plan.cuh"
#include "kernels/stem/wgrad/plan.cuh"
#include "launch/device.h"

namespace launch {

namespace {

using Bytes = std::map<std::string, int>;

// Of an instantiation, by the kernel's name and its template arguments behind the element type.
template <class Plan>
void add(Bytes& bytes, std::string name, std::initializer_list<int> arguments) {
    for (int argument : arguments) name.append(" ").append(std::to_string(argument));
    bytes[name] = Plan::kSharedBytes;
}

template <int kChannels, int kFilters, int... kStride>
void add_conv3x3_halo(Bytes& bytes) {
    for (int epilogue : {0, 1})
        (add<conv3x3_halo::Plan<kChannels, kFilters, kStride>>(bytes, "conv3x3_halo_kernel",
                                                               {kChannels, kFilters, kStride, epilogue}),
         ...);
}

void add_conv3x3_halos(Bytes& bytes) {
    add_conv3x3_halo<64, 64, 1, 2>(bytes);
    add_conv3x3_halo<128, 128, 1, 2>(bytes);
    add_conv3x3_halo<256, 256, 1, 2>(bytes);
    add_conv3x3_halo<512, 512, 1, 2>(bytes);
    add_conv3x3_halo<64, 128, 2>(bytes);
    add_conv3x3_halo<128, 256, 2>(bytes);
    add_conv3x3_halo<256, 512, 2>(bytes);
    add<conv3x3_halo_split::SplitPlan<1>>(bytes, "conv3x3_halo_split_kernel", {1});
    add<conv3x3_halo_split::SplitPlan<2>>(bytes, "conv3x3_halo_split_kernel", {2});
}

template <conv1x1::Epilogue kEpilogue, bool kPrologue, int... kFilters>
void add_conv1x1(Bytes& bytes) {
    (add<conv1x1::Variant<ElementType::kBf16, kFilters, kEpilogue, kPrologue>>(
         bytes, "conv1x1_kernel", {kFilters, static_cast<int>(kEpilogue), kPrologue}),
     ...);
}

template <int kChannels, bool kClusters>
void add_conv1x1_products(Bytes& bytes) {
    add<conv1x1_products::Variant<ElementType::kBf16, kChannels, kClusters>>(bytes, "conv1x1_products_kernel",
                                                                             {kChannels, kClusters});
}

template <int kChannels>
void add_conv1x1_gram(Bytes& bytes) {
    add<conv1x1_gram::Variant<ElementType::kBf16, kChannels>>(bytes, "conv1x1_gram_kernel", {kChannels});
    add<conv1x1_gram_finish::Variant<ElementType::kBf16, kChannels>>(bytes, "conv1x1_gram_finish_kernel", {kChannels});
}

void add_conv1x1_backward(Bytes& bytes) {
    add<conv1x1_backward::BackwardVariant<ElementType::kBf16>>(bytes, "conv1x1_backward_kernel", {});
    add<conv1x1_dgrad::DgradVariant<ElementType::kBf16>>(bytes, "conv1x1_dgrad_kernel", {});
    add<conv1x1_wgrad::WgradVariant<ElementType::kBf16, 64>>(bytes, "conv1x1_wgrad_kernel", {64});
    add<conv1x1_wgrad::WgradVariant<ElementType::kBf16, 128>>(bytes, "conv1x1_wgrad_kernel", {128});
}

template <int kChannels, int kStride, bottleneck_inference::Shortcut kShortcut, bottleneck_inference::Weights kWeights>
void add_bottleneck(Bytes& bytes) {
    add<bottleneck_inference::Plan<kChannels, kStride, kShortcut, kWeights>>(
        bytes, "bottleneck_inference_kernel",
        {kChannels, kStride, static_cast<int>(kShortcut), static_cast<int>(kWeights)});
}

void add_bottlenecks(Bytes& bytes) {
    using enum bottleneck_inference::Shortcut;
    using enum bottleneck_inference::Weights;
    add_bottleneck<64, 1, kIdentity, kResident>(bytes);
    add_bottleneck<64, 1, kProjection, kResident>(bytes);
    add_bottleneck<64, 1, kProjection, kStreamed>(bytes);
    add_bottleneck<64, 2, kProjection, kStreamed>(bytes);
    add_bottleneck<128, 1, kIdentity, kStreamed>(bytes);
    add_bottleneck<128, 1, kProjection, kStreamed>(bytes);
    add_bottleneck<128, 2, kProjection, kStreamed>(bytes);
}

template <int kStride, bool kBlockBelow, int... kChannels>
void add_conv3x3_halo_dgrad(Bytes& bytes) {
    (add<conv3x3_halo_dgrad::DgradPlan<kChannels, kChannels, kStride, kBlockBelow>>(
         bytes, "conv3x3_halo_dgrad_kernel", {kChannels, kChannels, kStride, kBlockBelow}),
     ...);
}

template <int... kChannels>
void add_conv3x3_halo_dgrad_doubled(Bytes& bytes) {
    (add<conv3x3_halo_dgrad::DgradPlan<kChannels, 2 * kChannels, 2, true>>(bytes, "conv3x3_halo_dgrad_kernel",
                                                                           {kChannels, 2 * kChannels, 2, true}),
     ...);
}

void add_conv3x3_halo_backward(Bytes& bytes) {
    add_conv3x3_halo_dgrad<1, false, 64, 128, 256, 512>(bytes);
    add_conv3x3_halo_dgrad<2, false, 64, 128, 256, 512>(bytes);
    add_conv3x3_halo_dgrad<1, true, 64, 128, 256, 512>(bytes);
    add_conv3x3_halo_dgrad_doubled<64, 128, 256>(bytes);
    add<conv3x3_halo_wgrad::WgradPlan<1>>(bytes, "conv3x3_halo_wgrad_kernel", {1});
    add<conv3x3_halo_wgrad::WgradPlan<2>>(bytes, "conv3x3_halo_wgrad_kernel", {2});
}

void add_stem(Bytes& bytes) {
    using conv1x1::Epilogue;
    add<stem::Variant<ElementType::kBf16, Epilogue::kScaleShiftAct>>(bytes, "stem_kernel", {0});
    add<stem::Variant<ElementType::kBf16, Epilogue::kStatistics>>(bytes, "stem_kernel", {1});
    add<stem_wgrad::Plan>(bytes, "stem_wgrad_kernel", {});
}

}  // namespace

std::map<std::string, int> shared_bytes() {
    Bytes bytes;
    for (const char* name : {"bn_act_backward", "bn_relu_maxpool_backward", "global_avg_pool", "channel_stats"})
        bytes[name] = kernels::kSumBytes;
    for (const char* name : {"merge_partials", "bn_finalize"}) bytes[name] = kernels::kMomentsBytes;
    bytes["sum_partials"] = kernels::kVectorSumBytes;
    if (!FUSED_RESNET_HOPPER) return bytes;

    using conv1x1::Epilogue;
    add_conv3x3_halos(bytes);
    add_conv1x1<Epilogue::kScaleShiftAct, false, 64, 128>(bytes);
    add_conv1x1<Epilogue::kScaleShiftAct, true, 64, 128>(bytes);
    add_conv1x1<Epilogue::kStatistics, false, 64, 128>(bytes);
    add_conv1x1<Epilogue::kStatistics, true, 64, 128>(bytes);
    add_conv1x1_products<64, false>(bytes);
    add_conv1x1_products<128, false>(bytes);
    add_conv1x1_products<128, true>(bytes);
    add_conv1x1_gram<64>(bytes);
    add_conv1x1_gram<128>(bytes);
    bytes["gram_exact_kernel"] = conv1x1_gram_exact::kSharedBytes;
    bytes["sum_gram_kernel"] = conv1x1_gram::RowSums::kBytes;
    add_conv1x1_backward(bytes);
    add_bottlenecks(bytes);
    add_stem(bytes);
    add_conv3x3_halo_backward(bytes);
    return bytes;
}

}  // namespace launch
