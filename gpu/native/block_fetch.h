// Bringing the keys and values of attention's next block close while one is computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace pawl {

constexpr int64_t kBlock = 64;      // keys of a block
constexpr int64_t kNowhere = -1;    // of a key that is not seen

template <class Stored>
class BlockFetch {
public:
    int64_t entries[kBlock];   // element offset of each key and value, or kNowhere

    // Fetch these from now on, `bytes` of each.
    void begin(const Stored* keys, const Stored* values, int64_t bytes) {
        keys_ = keys, values_ = values, bytes_ = bytes;
        fetched_ = line_ = due_ = 0;
    }

    // `keys` more keys, and their values, into the second cache. Inline: a compiler drops calls that only fetch.
    inline __attribute__((always_inline)) void fetch(int64_t keys) {
        for (const int64_t last = std::min(fetched_ + keys, kBlock); fetched_ < last; ++fetched_)
            if (entries[fetched_] != kNowhere) lines<2>(0, bytes_);
    }

    // A key head takes 64 shares of a block's time, and a core forgets fetches where there are many at once.
    inline __attribute__((always_inline)) void share(int64_t shares, int64_t heads) {
        for (due_ += shares; due_ >= heads; due_ -= heads) fetch(1);
    }

    // A block takes so many units of time, in which `evenly` fetches what has begun; 0: `evenly` does nothing.
    void pace(int64_t units) {
        portions_ = units > 0 ? kBlock * ((bytes_ + kPortion - 1) / kPortion) : 0;
        units_ = units > 0 ? units : std::numeric_limits<int64_t>::max();
    }

    // As `share`, but `units` of time, two lines of a key and of its value at once, and into the first cache. A line that is
    // on its way takes one of few places in a core, and where few rows are computed they wait for such a place too.
    inline __attribute__((always_inline)) void evenly(int64_t units) {
        for (due_ += units * portions_; due_ >= units_; due_ -= units_) {
            if (fetched_ >= kBlock) continue;
            const bool seen = entries[fetched_] != kNowhere;
            if (seen) lines<3>(line_, line_ + kPortion);
            if (seen && (line_ += kPortion) < bytes_) continue;
            line_ = 0, ++fetched_;
        }
    }

private:
    static constexpr int64_t kPortion = 128;   // bytes

    // From byte `begin` to `end` of the key that is next, and of its value. kNear: 3 is the first cache, 2 the second.
    template <int kNear>
    inline __attribute__((always_inline)) void lines(int64_t begin, int64_t end) const {
        const char* key = reinterpret_cast<const char*>(keys_ + entries[fetched_]);
        const char* value = reinterpret_cast<const char*>(values_ + entries[fetched_]);
        for (int64_t line = begin; line < end; line += 64) {
            __builtin_prefetch(key + line, 0, kNear);
            __builtin_prefetch(value + line, 0, kNear);
        }
    }

    const Stored *keys_ = nullptr, *values_ = nullptr;
    int64_t bytes_ = 0, fetched_ = kBlock, line_ = 0, due_ = 0;
    int64_t portions_ = 0, units_ = std::numeric_limits<int64_t>::max();
};

}  // namespace pawl
