/* Put in front of every file of llama.cpp, by -include: what compilers get wrong in it.
 *
 * ldtilecfg reads all 64 bytes of an AMX tile configuration. GCC's _tile_loadconfig tells the
 * compiler that the instruction reads the first 8 alone, so it may drop the stores to the others,
 * and the configuration that is loaded then is partly what lay on the stack: a fault, at the first
 * multiplication. Here the instruction names all 64 as its input. Clang's own is right.
 */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg %0" : : "m"(*(const char(*)[64])(config)) : "memory")
#endif
