#include "plan.h"

namespace pawl {

std::unique_ptr<AnyDecoder> make_bf16_decoder(const Shape& shape) { return std::make_unique<Decoder<Bf16>>(shape); }

}  // namespace pawl
