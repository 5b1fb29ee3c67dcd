#include "plan.h"

namespace pawl {

std::unique_ptr<AnyDecoder> make_float32_decoder(const Shape& shape) {
    return std::make_unique<Decoder<Float32>>(shape);
}

}  // namespace pawl
