// The shared memory of one CTA: bytes behind 32-bit addresses, and a checker that knows, for every
// 16-byte line, who wrote it, who read it, and what the asynchronous engines still do with it.
//
// Ordering is checked with vector clocks at warp granularity: an access is a race unless the accesses
// it conflicts with happened before it through a barrier, whatever order the scheduler happened to pick.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#include "emulation/clock.hpp"

namespace emu {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    throw Error(text);
}

constexpr uint32_t kLineBytes = 16;
constexpr uint8_t kPoison = 0xFF;  // NaN in bf16, f16 and f32
constexpr int kNobody = -1;
constexpr int kAnotherCta = -2;

// Who accesses a CTA's shared memory: a thread of it, or a whole warp on behalf of an asynchronous instruction that it
// issued, or somebody of another CTA; and what that one knows to lie behind it of this CTA's agents.
struct Agent {
    int warp;
    int thread;
    const Seen& seen;
};

class SharedMemory {
  public:
    void reset(uint32_t bytes) {
        bytes_.assign(bytes, kPoison);
        lines_.assign((bytes + kLineBytes - 1) / kLineBytes, Line{});
    }

    const uint8_t* data(uint32_t address) const { return &bytes_[address]; }

    void check_bounds(uint32_t address, uint32_t size, uint32_t alignment, const char* what) const {
        if (uint64_t{address} + size > bytes_.size())
            fail("%s out of bounds: shared address 0x%x + %u B exceeds %zu B", what, address, size, bytes_.size());
        if (address % alignment) fail("%s misaligned: shared address 0x%x needs %u B", what, address, alignment);
    }

    void generic_read(Agent by, uint32_t address, void* out, uint32_t size) {
        check_bounds(address, size, size, "generic read");
        Line& line = lines_[address / kLineBytes];
        check_readable(line, by, address, "generic read");
        line.read[by.warp] = by.seen[by.warp];
        std::memcpy(out, &bytes_[address], size);
    }

    void generic_write(Agent by, uint32_t address, const void* in, uint32_t size) {
        check_bounds(address, size, size, "generic write");
        Line& line = lines_[address / kLineBytes];
        check_writable(line, by, address, "generic write");
        line.writer = by.warp;
        line.written = by.seen[by.warp];
        line.unfenced_writer = by.thread;
        std::memcpy(&bytes_[address], in, size);
    }

    // fence.proxy.async by `thread`: its generic write to this line is now visible to the async proxy.
    void fence_line(int thread, uint32_t line) {
        if (lines_[line].unfenced_writer == thread) lines_[line].unfenced_writer = kNobody;
    }

    // An asynchronous instruction starts to read one line; it must call async_read_end when it is waited for.
    void async_read_begin(Agent by, uint32_t address, const char* what) {
        check_bounds(address, kLineBytes, kLineBytes, what);
        Line& line = lines_[address / kLineBytes];
        check_readable(line, by, address, what);
        check_fenced(line, address, what);
        ++line.async_reads;
    }
    void async_read_end(int warp, const Seen& seen, uint32_t address) {
        Line& line = lines_[address / kLineBytes];
        --line.async_reads;
        line.read[warp] = seen[warp];
    }

    // A TMA load claims its destination when it is issued and fills it when it completes.
    void async_write_begin(Agent by, uint32_t address, uint32_t size, const char* what) {
        check_bounds(address, size, 128, what);
        for (uint32_t at = address; at < address + size; at += kLineBytes) {
            check_fenced(lines_[at / kLineBytes], at, what);
            claim(lines_[at / kLineBytes], by, at, what);
        }
        std::memset(&bytes_[address], kPoison, size);
    }
    // So does a store from another CTA. It belongs to no proxy's order: no fence lets TMA or wgmma have the line.
    void remote_write_begin(Agent by, uint32_t address, uint32_t size) {
        check_bounds(address, size, kLineBytes, "store from another CTA");
        Line& line = lines_[address / kLineBytes];
        claim(line, by, address, "store from another CTA");
        line.unfenced_writer = kAnotherCta;
        std::memset(&bytes_[address], kPoison, size);
    }
    void async_write_end(uint32_t address, const std::vector<uint8_t>& payload, uint32_t epoch) {
        std::memcpy(&bytes_[address], payload.data(), payload.size());
        for (uint32_t at = address; at < address + payload.size(); at += kLineBytes) {
            Line& line = lines_[at / kLineBytes];
            line.async_write = nullptr;
            line.writer = kTma;
            line.written = epoch;
        }
    }

  private:
    struct Line {
        int writer = kNobody;               // agent of the last write
        uint32_t written = 0;               // its epoch
        int unfenced_writer = kNobody;      // thread whose generic write the async proxy may not see yet
        int async_reads = 0;                // wgmma and TMA stores in flight that read this line
        const char* async_write = nullptr;  // in flight, that writes this line
        Seen read{};
    };

    static void claim(Line& line, Agent by, uint32_t address, const char* what) {
        check_writable(line, by, address, what);
        line.async_write = what;
    }

    static void check_readable(const Line& line, Agent by, uint32_t address, const char* what) {
        if (line.async_write) fail("%s of 0x%x while a %s into it is in flight", what, address, line.async_write);
        if (line.writer == kNobody) fail("%s of 0x%x, which was never written", what, address);
        check_ordered(by, line.writer, line.written, address, what, "write");
    }

    static void check_writable(const Line& line, Agent by, uint32_t address, const char* what) {
        if (line.async_write) fail("%s of 0x%x while a %s into it is in flight", what, address, line.async_write);
        if (line.async_reads) fail("%s of 0x%x while wgmma or a TMA store still reads it", what, address);
        if (line.writer != kNobody) check_ordered(by, line.writer, line.written, address, what, "write");
        for (int reader = 0; reader < kMaxWarps; ++reader)
            check_ordered(by, reader, line.read[reader], address, what, "read");
    }

    static void check_ordered(Agent by, int other, uint32_t epoch, uint32_t address, const char* what,
                              const char* earlier) {
        if (other == by.warp || by.seen[other] >= epoch) return;
        if (other == kTma) fail("%s of 0x%x without waiting on the mbarrier of the asynchronous write", what, address);
        fail("race: %s of 0x%x is not ordered after a %s by warp %d", what, address, earlier, other);
    }

    static void check_fenced(const Line& line, uint32_t address, const char* what) {
        if (line.unfenced_writer == kAnotherCta)
            fail("%s of 0x%x, where another CTA has stored something", what, address);
        if (line.unfenced_writer != kNobody)
            fail("%s of 0x%x after a generic write by thread %d without fence.proxy.async", what, address,
                 line.unfenced_writer);
    }

    std::vector<uint8_t> bytes_;
    std::vector<Line> lines_;
};

}  // namespace emu
