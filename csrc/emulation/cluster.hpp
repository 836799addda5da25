// One cluster under emulation: its CTAs side by side.
#pragma once
#include <memory>

#include "emulation/cta.hpp"

namespace emu {

class ClusterRun {
  public:
    ClusterRun(const LaunchShape& shape, int first_block, const std::function<void()>& kernel) {
        for (int rank = 0; rank < shape.cluster; ++rank) {
            cluster_.ctas.push_back(std::make_unique<Cta>(shape, first_block + rank, kernel, cluster_));
            order_.push_back(cluster_.ctas.back().get());
        }
        random_.seed(shape.schedule_seed + 7919 * first_block);
        randomized_ = shape.schedule_seed != 0;
    }

    // Every thread to its end, each CTA in turn until all wait; then something arrives, or there is a deadlock.
    void run() {
        for (Cta* cta : order_) cta->start();
        while (!std::ranges::all_of(order_, &Cta::finished)) {
            uint64_t before = progress();
            if (randomized_) std::ranges::shuffle(order_, random_);
            for (Cta* cta : order_) cta->turn();
            if (progress() == before && !std::ranges::any_of(order_, &Cta::deliver))
                fail("deadlock\n%s", waits().c_str());
        }
        for (const Cta* cta : order_) {
            cta->check_waited();
            cta->check_outlived();
        }
    }

  private:
    uint64_t progress() const {
        uint64_t sum = 0;
        for (const Cta* cta : order_) sum += cta->progress();
        return sum;
    }

    std::string waits() const {
        if (order_.size() == 1) return order_[0]->waits();
        std::string report;
        for (const auto& cta : cluster_.ctas) report += " block " + std::to_string(cta->block()) + "\n" + cta->waits();
        return report;
    }

    Cluster cluster_;
    std::vector<Cta*> order_;
    std::mt19937 random_;
    bool randomized_;
};

}  // namespace emu
