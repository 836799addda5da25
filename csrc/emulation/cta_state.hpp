// What a CTA under emulation consists of, and who waits for what in it.
#pragma once
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "emulation/fiber.hpp"
#include "emulation/shared_memory.hpp"

namespace emu {

constexpr int kRegisterFile = 65536;

struct LaunchShape {
    int blocks = 1;
    int threads = 128;
    uint32_t shared_bytes = 0;
    unsigned schedule_seed = 0;  // not 0: warps and TMA loads take a random order
    int workers = 1;             // operating-system threads that run blocks
    bool dependent = false;      // on a GPU the grid may start while the one before it still runs
    int cluster = 1;             // blocks that run together and reach each other's shared memory
};

struct WaitReason {
    const char* what = "";
    uint32_t object = 0;
    uint32_t detail = 0;
};

struct TmaStore {
    uint32_t shared;
    uint32_t bytes;
    bool committed;
};

struct Thread {
    Fiber fiber;
    int index = 0;
    bool done = false;
    WaitReason waits_for;
    std::vector<uint32_t> unfenced_lines;
    std::vector<TmaStore> stores;
    int collectives = 0;  // warp collectives entered so far
    bool wgmma_fenced = false;
    bool waited_for_previous_grid = false;

    int warp() const { return index / 32; }
    int lane() const { return index % 32; }
};

struct Mbarrier {
    int count = 0;    // arrivals per phase
    int pending = 0;  // arrivals still missing in this phase
    int64_t tx_bytes = 0;
    uint32_t phase = 0;
    Clock clock, completed;  // of all arrivals; of those up to the last phase that is complete
    int initializer = 0;     // warp and thread that initialised it, when, and whether a fence told the async proxy
    int initializer_thread = 0;
    uint32_t initialized = 0;
    bool fenced = false;
};

struct NamedBarrier {
    int expected = 0;
    int arrived = 0;
    uint32_t generation = 0;
    Clock clock, completed;
};

// Operands exchanged by the 32 lanes of a collective; two buffers, so that a fast lane can enter the next one.
struct WarpExchange {
    static constexpr int kWords = 8;
    std::array<std::array<std::array<uint32_t, kWords>, 32>, 2> words{};
    int arrived = 0;
    int completed = 0;
};

// Every reason to wait, with the first thread and the number of threads that have it: a deadlock's report.
inline std::string describe_waits(const std::vector<Thread>& threads, const std::map<uint32_t, Mbarrier>& mbarriers,
                                  const std::array<NamedBarrier, 16>& named_barriers) {
    std::map<std::string, std::pair<int, int>> waiting;  // reason -> first thread, number of threads
    for (const Thread& thread : threads) {
        if (thread.done) continue;
        char text[160];
        const WaitReason& on = thread.waits_for;
        auto mbarrier = mbarriers.find(on.object);
        if (!std::strcmp(on.what, "mbarrier") && mbarrier != mbarriers.end())
            std::snprintf(text, sizeof text, "mbarrier 0x%x parity %u (phase %u, %d of %d arrivals and %ld B missing)",
                          on.object, on.detail, mbarrier->second.phase, mbarrier->second.pending,
                          mbarrier->second.count, long(mbarrier->second.tx_bytes));
        else if (!std::strcmp(on.what, "named barrier"))
            std::snprintf(text, sizeof text, "named barrier %u (%d of %u threads arrived)", on.object,
                          named_barriers[on.object].arrived, on.detail);
        else
            std::snprintf(text, sizeof text, "%s %u", on.what, on.object);
        ++waiting.try_emplace(text, thread.index, 0).first->second.second;
    }
    std::string report;
    for (const auto& [reason, who] : waiting)
        report += "  " + std::to_string(who.second) + " threads from thread " + std::to_string(who.first) +
                  " on wait for " + reason + "\n";
    return report;
}

}  // namespace emu
