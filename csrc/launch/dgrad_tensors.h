// The operands of conv_dgrad, as the launchers of both kinds of convolution take them.
#pragma once
#include "launch/check.h"

namespace launch {

struct DgradTensors {
    const uint16_t *g, *z, *weight, *below_z, *below_out, *skip, *skip_out;
    uint16_t* dx;
};

// What goes with what; `arguments` has the vectors.
template <class Arguments>
void require_together(const Call& call, const DgradTensors& tensors, const Arguments& arguments) {
    call.require((arguments.norm.b == nullptr) == (arguments.norm.c == nullptr), "one of b and c is missing");
    call.require(tensors.z || !arguments.norm.b, "z is missing, and there is a b to multiply it by");
    call.require((arguments.below_scale == nullptr) == (arguments.below_shift == nullptr),
                 "one of below_scale and below_shift is missing");
    call.require(tensors.below_z || !arguments.below_scale, "below_z is missing, and there is a below_scale for it");
    call.require((tensors.below_z == nullptr) == (arguments.below_mean == nullptr) &&
                     (tensors.below_z == nullptr) == (arguments.partials == nullptr),
                 "below_z, below_mean and partials must be given together");
    call.require(!tensors.below_out || !arguments.below_scale,
                 "below_out masks in the place of below_scale and below_shift; pass either it or them");
    call.require(tensors.skip || !tensors.skip_out, "skip is missing, and there is a skip_out to mask it");
}

}  // namespace launch
