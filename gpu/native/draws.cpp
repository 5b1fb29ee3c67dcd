// Which tokens of a row can win a draw: integers and comparisons alone, so that the noise itself is computed by whoever
// asks, for these few, with the bits that it has for all (gpu/sampling/on_host.py).
#include <cstdint>

namespace {

constexpr int kTogether = 64;

inline uint32_t mixed(uint32_t word) {
    word = (word ^ (word >> 16)) * 0x7FEB352Du;
    word = (word ^ (word >> 15)) * 0x846CA68Bu;
    return word ^ (word >> 16);
}

}  // namespace

extern "C" {

// Tokens, rising, whose noise is made of a word below `bound` or whose value is `least` or more, and their number.
// `values` and `tokens` have room for `count`; the key of the row is (first, second).
int32_t pawl_native_contenders(const float* values, int32_t count, uint32_t first, uint32_t second, uint32_t bound,
                               float least, uint32_t* tokens) {
    int32_t found = 0;
    for (int32_t from = 0; from < count; from += kTogether) {
        const int32_t here = count - from < kTogether ? count - from : kTogether;
        uint8_t kept[kTogether];
        uint32_t any = 0;
        for (int32_t i = 0; i < here; ++i) {
            const uint32_t word = mixed(mixed((uint32_t(from + i) * 0x9E3779B1u) ^ first) + second) & 0x7FFFFFFFu;
            const uint32_t keep = uint32_t(word < bound) | uint32_t(values[from + i] >= least);
            kept[i] = uint8_t(keep);
            any |= keep;
        }
        if (!any) continue;
        for (int32_t i = 0; i < here; ++i) {
            tokens[found] = uint32_t(from + i);
            found += kept[i];
        }
    }
    return found;
}

}  // extern "C"
