// Vector clocks: how much of what every agent of a cluster has done comes before this.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace emu {

constexpr int kMaxWarps = 16;
constexpr int kTma = kMaxWarps;  // the asynchronous engines, as one more agent
constexpr int kAgents = kMaxWarps + 1;

using Seen = std::array<uint32_t, kAgents>;  // of the agents of one CTA

// By rank in the cluster; a rank that it lacks has done nothing.
class Clock {
  public:
    Seen& operator[](size_t rank) {
        if (rank >= ctas_.size()) ctas_.resize(rank + 1);
        return ctas_[rank];
    }
    void join(const Clock& other) {
        for (size_t rank = 0; rank < other.ctas_.size(); ++rank) {
            Seen& mine = (*this)[rank];
            for (int agent = 0; agent < kAgents; ++agent) mine[agent] = std::max(mine[agent], other.ctas_[rank][agent]);
        }
    }
    bool covers(const Clock& other) const {
        Clock both = *this;
        both.join(other);
        return both.ctas_ == ctas_;
    }

  private:
    std::vector<Seen> ctas_;
};

}  // namespace emu
