// What a block's quants are weighted with.
#pragma once

#include "blocks.h"

namespace pawl {

// How far ahead of itself a panel is fetched, in bytes.
constexpr int64_t kBytesAhead = 4096;

// What a block's weights of kLanes outputs are, beside their quants.
struct BlockScales {
    Floats scale, second;   // `second`: the least, or the scale of the second half
};

template <class L>
BlockScales scales_of(const uint8_t* group, const uint8_t* block, int lane) {
    BlockScales found{};
    const uint8_t *scale = block + L::kScale, *second = block + L::kSecond;
    if constexpr (L::kSuper) {
        const Floats d = load_halves(group + lane * 2);
        typedef typename std::conditional<L::kLeast, uint8_t, int8_t>::type Small;
        found.scale = d * load_small<Small>(scale + lane);
        found.second = load_small<Small>(second + lane);
        found.second = L::kLeast ? load_halves(group + kPanel * 2 + lane * 2) * -found.second : d * found.second;
    } else {
        found.scale = load_halves(scale + lane * 2);
        if constexpr (L::kLeast) found.second = load_halves(second + lane * 2);
    }
    return found;
}

}  // namespace pawl
