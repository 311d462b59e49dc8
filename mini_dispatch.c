#include "kernels.h"
extern const fi_isa fi_isa_avx512_bf16;
const fi_isa *const fi_isas[]={&fi_isa_avx512_bf16,0};
