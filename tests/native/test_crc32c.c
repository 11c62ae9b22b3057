/* Every implementation of crc32c.h that this machine can run gives the same, right checksum: RFC
 * 3720's vectors, and each length and alignment against a bit-by-bit reference. Exit status 0 on
 * success.
 *
 *   gcc -std=gnu11 -O2 -Wall -Wextra -Werror -I shmbroker/_core tests/native/test_crc32c.c -o t
 * && ./t
 *   aarch64-linux-gnu-gcc -static (the same) && qemu-aarch64 ./t
 */
#undef NDEBUG
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "crc32c.h"

struct implementation {
    const char *name;
    shmb_crc32c_fn *run;
};

static struct implementation implementations[4];
static int implementation_count;

static void add(const char *name, shmb_crc32c_fn *run) {
    implementations[implementation_count++] = (struct implementation){name, run};
}

static void find_implementations(void) {
    add("portable", shmb_crc32c_portable);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2")) add("sse4.2", shmb_crc32c_sse42);
    if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("vpclmulqdq"))
        add("avx512-vpclmul", shmb_crc32c_avx512);
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP) & HWCAP_CRC32) add("armv8-crc", shmb_crc32c_armv8);
#endif
}

static uint32_t reference(uint32_t reg, const uint8_t *p, size_t n) {
    while (n--) {
        reg ^= *p++;
        for (int i = 0; i < 8; i++) reg = reg >> 1 ^ (reg & 1 ? SHMB_CRC32C_POLY : 0);
    }
    return reg;
}

static void each_agrees(uint32_t reg, const uint8_t *p, size_t n) {
    uint32_t expected = reference(reg, p, n);
    for (int i = 0; i < implementation_count; i++) {
        uint32_t got = implementations[i].run(reg, p, n);
        if (got != expected) {
            fprintf(stderr, "%s: %zu bytes: %08x, expected %08x\n", implementations[i].name, n,
            got,
                    expected);
            exit(1);
        }
    }
}

static void gives_the_vectors_of_rfc_3720(void) {
    uint8_t block[32];
    assert(shmb_crc32c(0, "123456789", 9) == 0xe3069283);
    assert(shmb_crc32c(0, "", 0) == 0);
    memset(block, 0x00, 32);
    assert(shmb_crc32c(0, block, 32) == 0x8a9136aa);
    memset(block, 0xff, 32);
    assert(shmb_crc32c(0, block, 32) == 0x62a8ab43);
    for (int i = 0; i < 32; i++) block[i] = (uint8_t)i;
    assert(shmb_crc32c(0, block, 32) == 0x46dd794e);
    for (int i = 0; i < 32; i++) block[i] = (uint8_t)(31 - i);
    assert(shmb_crc32c(0, block, 32) == 0x113fdb5c);
}

int main(void) {
    enum { BYTES = 20000, SLACK = 64 };
    uint8_t *data = malloc(BYTES + SLACK);
    uint32_t seed = 2463534242u; /* xorshift32 */
    assert(data);
    for (int i = 0; i < BYTES + SLACK; i++) {
        seed ^= seed << 13, seed ^= seed >> 17, seed ^= seed << 5;
        data[i] = (uint8_t)seed;
    }
    find_implementations();
    gives_the_vectors_of_rfc_3720();
    for (size_t n = 0; n <= 1700; n++) each_agrees(seed + (uint32_t)n, data + n % SLACK, n);
    for (size_t n = 1701; n <= BYTES; n += 97) each_agrees(~0u, data + n % SLACK, n);
    for (size_t cut = 0; cut <= BYTES; cut += 331) /* the sum of two parts, one after the other */
        assert(shmb_crc32c(shmb_crc32c(0, data, cut), data + cut, BYTES - cut) ==
               shmb_crc32c(0, data, BYTES));
    printf("crc32c: %d implementations agree, %s is chosen\n", implementation_count,
           shmb_crc32c_impl_name());
    free(data);
    return 0;
}
