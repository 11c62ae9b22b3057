/* CRC-32C (Castagnoli, RFC 3720), the checksum of record batches, as fast as the host can.
 *
 *   avx512-vpclmul  x86-64: folds 256 bytes a step by carry-less multiplication
 *   sse4.2          x86-64: the crc32 instruction on three lanes, which hides its latency of 3
 *   armv8-crc       aarch64: the same with crc32cx
 *   portable        slicing-by-8, any machine
 *
 * The choice falls once, in a constructor, when the object that includes this is loaded; no -march
 * flag and no ifunc. All state is written by that constructor and only read afterwards, so any
 * thread of any process may call shmb_crc32c() without a lock. Each including object has a copy.
 *
 * Sources: V. Gopal et al., "Fast CRC computation for iSCSI polynomial using CRC32 instruction"
 * and "... using PCLMULQDQ" (Intel, 2011 and 2009); Corsix, "fast-crc32" for folding constants.
 */
#ifndef SHMB_CRC32C_H
#define SHMB_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

#define SHMB_CRC32C_POLY 0x82f63b78u /* bit-reflected: bit 31 is the coefficient of x^0 */

/* Lane lengths in bytes of the three-lane loops: long for bulk, short to cover the rest. */
enum { SHMB_CRC32C_LONG = 2048, SHMB_CRC32C_SHORT = 256 };

/* Functions of this type take and return the register, that is the CRC without its two
 * inversions. */
typedef uint32_t shmb_crc32c_fn(uint32_t reg, const uint8_t *p, size_t n);

static uint32_t shmb_crc32c_slice[8][256];       /* [k][b]: byte b followed by k zero bytes */
static uint32_t shmb_crc32c_shift_long[4][256];  /* [k][b]: byte k of a register, LONG on */
static uint32_t shmb_crc32c_shift_short[4][256]; /* ... SHORT zero bytes further on */

static inline uint64_t shmb_crc32c_load8(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static uint32_t shmb_crc32c_portable(uint32_t reg, const uint8_t *p, size_t n) {
    const uint32_t(*t)[256] = (const uint32_t(*)[256])shmb_crc32c_slice;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t v = shmb_crc32c_load8(p) ^ reg;
        reg = t[7][v & 0xff] ^ t[6][v >> 8 & 0xff] ^ t[5][v >> 16 & 0xff] ^ t[4][v >> 24 & 0xff] ^
              t[3][v >> 32 & 0xff] ^ t[2][v >> 40 & 0xff] ^ t[1][v >> 48 & 0xff] ^ t[0][v >> 56];
    }
    for (; n; n--) reg = reg >> 8 ^ t[0][(reg ^ *p++) & 0xff];
    return reg;
}

/* a * b modulo the polynomial, all bit-reflected. Only for making tables and constants. */
static uint32_t shmb_crc32c_multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int i = 0; i < 32; i++) {
        if (a & 0x80000000u) product ^= b;
        a <<= 1;
        b = b >> 1 ^ (b & 1 ? SHMB_CRC32C_POLY : 0);
    }
    return product;
}

/* x^n modulo the polynomial: what a register is multiplied by when n zero bits follow. */
static uint32_t shmb_crc32c_power(uint64_t n) {
    uint32_t result = 0x80000000u, square = 0x40000000u; /* x^0, x^1 */
    for (; n; n >>= 1) {
        if (n & 1) result = shmb_crc32c_multiply(result, square);
        square = shmb_crc32c_multiply(square, square);
    }
    return result;
}

static inline uint32_t shmb_crc32c_shift(const uint32_t t[4][256], uint32_t reg) {
    return t[0][reg & 0xff] ^ t[1][reg >> 8 & 0xff] ^ t[2][reg >> 16 & 0xff] ^ t[3][reg >> 24];
}

static void shmb_crc32c_make_shift(uint32_t t[4][256], size_t bytes) {
    uint32_t power = shmb_crc32c_power(8 * (uint64_t)bytes);
    for (int k = 0; k < 4; k++)
        for (uint32_t b = 0; b < 256; b++) t[k][b] = shmb_crc32c_multiply(b << 8 * k, power);
}

/* The instruction takes 3 cycles but a new one can start in each, so three independent lanes run
 * three times as fast as one. The CRC is linear: the first lane's register moves on by the lane's
 * length (one look-up a byte) and is added to the next one's. STEP8 and STEP1 are the
 * instruction. */
#define SHMB_CRC32C_LANES(LANE, SHIFT, STEP8)                                                  \
    for (; n >= 3 * LANE; n -= 3 * LANE, p += 3 * LANE) {                                      \
        uint32_t a = reg, b = 0, c = 0;                                                        \
        for (size_t i = 0; i < LANE; i += 8) {                                                 \
            a = STEP8(a, shmb_crc32c_load8(p + i));                                            \
            b = STEP8(b, shmb_crc32c_load8(p + LANE + i));                                     \
            c = STEP8(c, shmb_crc32c_load8(p + 2 * LANE + i));                                 \
        }                                                                                      \
        b ^= shmb_crc32c_shift((const uint32_t(*)[256])SHIFT, a);                              \
        reg = c ^ shmb_crc32c_shift((const uint32_t(*)[256])SHIFT, b);                         \
    }

#define SHMB_CRC32C_THREE_LANES(STEP8, STEP1)                                                  \
    SHMB_CRC32C_LANES(SHMB_CRC32C_LONG, shmb_crc32c_shift_long, STEP8)                         \
    SHMB_CRC32C_LANES(SHMB_CRC32C_SHORT, shmb_crc32c_shift_short, STEP8)                       \
    for (; n >= 8; n -= 8, p += 8) reg = STEP8(reg, shmb_crc32c_load8(p));                     \
    for (; n; n--) reg = STEP1(reg, *p++);                                                     \
    return reg;

#if defined(__x86_64__)

#define SHMB_CRC32C_X86_8(reg, v) ((uint32_t)_mm_crc32_u64(reg, v))

__attribute__((target("sse4.2"))) static uint32_t shmb_crc32c_sse42(uint32_t reg, const uint8_t *p,
                                                                    size_t n) {
    SHMB_CRC32C_THREE_LANES(SHMB_CRC32C_X86_8, _mm_crc32_u8)
}

/* Folding constants. A 64-bit half of a 128-bit chunk, times x^k mod P, stands k bits further on
 * with the same remainder. For a fold by d bits the lower half (earlier bytes: reflected) needs
 * k = d + 64, the upper one k = d; both minus 33: 32 since the constant is 32 bits in a 64-bit
 * operand, 1 since a reflected product of 64 by 64 bits is one bit short of 128. */
static uint64_t shmb_crc32c_fold[4][2]; /* by 2048, 512, 256 and 128 bits: {lower, upper} */

#define SHMB_CRC32C_AVX512 "sse4.2,pclmul,avx512f,avx512vl,vpclmulqdq"

__attribute__((target(SHMB_CRC32C_AVX512))) static inline __m512i shmb_crc32c_fold512(
    __m512i x, __m512i k, __m512i next) {
    __m512i lower = _mm512_clmulepi64_epi128(x, k, 0x00);
    __m512i upper = _mm512_clmulepi64_epi128(x, k, 0x11);
    return _mm512_ternarylogic_epi64(lower, upper, next, 0x96); /* xor of the three */
}

__attribute__((target(SHMB_CRC32C_AVX512))) static inline __m512i shmb_crc32c_constants(int i) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)shmb_crc32c_fold[i]));
}

__attribute__((target(SHMB_CRC32C_AVX512))) static inline __m128i shmb_crc32c_fold128(
    __m128i x, __m128i k, __m128i next) {
    return _mm_xor_si128(next, _mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00),
                                             _mm_clmulepi64_si128(x, k, 0x11)));
}

__attribute__((target(SHMB_CRC32C_AVX512))) static uint32_t shmb_crc32c_avx512(uint32_t reg,
                                                                               const uint8_t *p,
                                                                               size_t n) {
    if (n >= 512) { /* below, setting up costs more than it saves */
        const __m512i far = shmb_crc32c_constants(0), near = shmb_crc32c_constants(1);
        __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64);
        __m512i c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
        a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)reg)));
        for (p += 256, n -= 256; n >= 256; p += 256, n -= 256) {
            a = shmb_crc32c_fold512(a, far, _mm512_loadu_si512(p));
            b = shmb_crc32c_fold512(b, far, _mm512_loadu_si512(p + 64));
            c = shmb_crc32c_fold512(c, far, _mm512_loadu_si512(p + 128));
            d = shmb_crc32c_fold512(d, far, _mm512_loadu_si512(p + 192));
        }
        a = shmb_crc32c_fold512(a, near, b);
        a = shmb_crc32c_fold512(a, near, c);
        a = shmb_crc32c_fold512(a, near, d);
        for (; n >= 64; p += 64, n -= 64) a = shmb_crc32c_fold512(a, near, _mm512_loadu_si512(p));
        const __m128i k = _mm_loadu_si128((const __m128i *)shmb_crc32c_fold[3]);
        __m128i x = _mm512_castsi512_si128(a);
        x = shmb_crc32c_fold128(x, k, _mm512_extracti32x4_epi32(a, 1));
        x = shmb_crc32c_fold128(x, k, _mm512_extracti32x4_epi32(a, 2));
        x = shmb_crc32c_fold128(x, k, _mm512_extracti32x4_epi32(a, 3));
        reg = (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_extract_epi64(x, 0));
        reg = (uint32_t)_mm_crc32_u64(reg, (uint64_t)_mm_extract_epi64(x, 1));
    }
    return shmb_crc32c_sse42(reg, p, n);
}

#elif defined(__aarch64__)

#if defined(__clang__)
#define SHMB_CRC32C_ARM __attribute__((target("crc")))
#else
#define SHMB_CRC32C_ARM __attribute__((target("+crc")))
#endif

SHMB_CRC32C_ARM static uint32_t shmb_crc32c_armv8(uint32_t reg, const uint8_t *p, size_t n) {
    SHMB_CRC32C_THREE_LANES(__crc32cd, __crc32cb)
}

#endif

static shmb_crc32c_fn *shmb_crc32c_impl; /* set once by the constructor */
static const char *shmb_crc32c_name;

/* Runs when the including object is loaded, before any other code of it: about 60 us. */
__attribute__((constructor)) static void shmb_crc32c_choose(void) {
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t reg = b;
        for (int i = 0; i < 8; i++) reg = reg >> 1 ^ (reg & 1 ? SHMB_CRC32C_POLY : 0);
        shmb_crc32c_slice[0][b] = reg;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t b = 0; b < 256; b++) {
            uint32_t reg = shmb_crc32c_slice[k - 1][b];
            shmb_crc32c_slice[k][b] = reg >> 8 ^ shmb_crc32c_slice[0][reg & 0xff];
        }
    shmb_crc32c_make_shift(shmb_crc32c_shift_long, SHMB_CRC32C_LONG);
    shmb_crc32c_make_shift(shmb_crc32c_shift_short, SHMB_CRC32C_SHORT);
    shmb_crc32c_impl = shmb_crc32c_portable;
    shmb_crc32c_name = "portable";
#if defined(__x86_64__)
    static const unsigned distances_bits[4] = {2048, 512, 256, 128};
    for (int i = 0; i < 4; i++) {
        shmb_crc32c_fold[i][0] = shmb_crc32c_power(distances_bits[i] + 64 - 33);
        shmb_crc32c_fold[i][1] = shmb_crc32c_power(distances_bits[i] - 33);
    }
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2")) {
        shmb_crc32c_impl = shmb_crc32c_sse42;
        shmb_crc32c_name = "sse4.2";
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("pclmul")) {
            shmb_crc32c_impl = shmb_crc32c_avx512;
            shmb_crc32c_name = "avx512-vpclmul";
        }
    }
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP) & HWCAP_CRC32) {
        shmb_crc32c_impl = shmb_crc32c_armv8;
        shmb_crc32c_name = "armv8-crc";
    }
#endif
}

/* CRC-32C of the `n` bytes at `p`, continuing from `seed_crc` (0 at the start, else the CRC of the
 * bytes before). Thread-safe, any alignment, allocates nothing. */
__attribute__((unused)) static uint32_t shmb_crc32c(uint32_t seed_crc, const void *p, size_t n) {
    return ~shmb_crc32c_impl(~seed_crc, (const uint8_t *)p, n);
}

/* Which of the implementations named at the top this process uses. */
__attribute__((unused)) static const char *shmb_crc32c_impl_name(void) { return shmb_crc32c_name; }

#endif
