// The two floats of 16 bits, float16 and bfloat16: exact to float32, and from there to the nearest, ties to even.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#ifdef __F16C__
#include <immintrin.h>
#endif

namespace {

struct Float16 {
    uint16_t bits;
    Float16() = default;
    explicit Float16(float f) : bits(rounded(f)) {}
    static uint16_t rounded(float f) {
        int32_t all = std::bit_cast<int32_t>(f), sign = (all >> 16) & 0x8000, m = all & 0x7fffffff;
        int32_t normal = (m + 0xfff + ((m >> 13) & 1) - (112 << 23)) >> 13;
        int32_t subnormal = std::bit_cast<int32_t>(std::bit_cast<float>(m) + 0.5f) - 0x3f000000;  // the addition rounds
        int32_t beyond = m > 0x7f800000 ? 0x7e00 : 0x7c00;
        int32_t finite = m < 0x38800000 ? subnormal : normal;
        return static_cast<uint16_t>((m >= 0x477ff000 ? beyond : finite) | sign);
    }
    operator float() const {
#ifdef __F16C__
        return _cvtsh_ss(bits);  // the product below takes a processor 100 cycles where it is subnormal
#endif
        uint32_t shifted = (bits & 0x7fffu) << 13, sign = (bits & 0x8000u) << 16;
        uint32_t finite = std::bit_cast<uint32_t>(std::bit_cast<float>(shifted) * 0x1p112f);  // subnormal or not
        return std::bit_cast<float>((shifted >= 0x0f800000u ? finite | 0x7f800000u : finite) | sign);
    }
};

struct BFloat16 {
    uint16_t bits;
    BFloat16() = default;
    explicit BFloat16(float f) : bits(rounded(f)) {}
    static uint16_t rounded(float f) {
        int32_t all = std::bit_cast<int32_t>(f), sign = (all >> 16) & 0x8000, m = all & 0x7fffffff;
        int32_t number = (m + 0x7fff + ((m >> 16) & 1)) >> 16;
        return static_cast<uint16_t>((m > 0x7f800000 ? 0x7fc0 : number) | sign);
    }
    operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

#ifdef __AVX2__
// 8 of them, or 16; of loops as short GCC makes no vectors here.
inline __m256 widened_8(const Float16* x) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x))); }
inline __m256 widened_8(const BFloat16* x) {
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
inline __m128i narrowed_8(const float* x, Float16) { return _mm256_cvtps_ph(_mm256_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT); }
inline __m128i narrowed_8(const float* x, BFloat16) {
    __m256i all = _mm256_castps_si256(_mm256_loadu_ps(x)), m = _mm256_and_si256(all, _mm256_set1_epi32(0x7fffffff));
    __m256i high = _mm256_srli_epi32(all, 16), odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i number = _mm256_srli_epi32(_mm256_add_epi32(all, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_or_si256(_mm256_and_si256(high, _mm256_set1_epi32(0x8000)), _mm256_set1_epi32(0x7fc0));
    __m256i one = _mm256_blendv_epi8(number, nan, _mm256_cmpgt_epi32(m, _mm256_set1_epi32(0x7f800000)));
    return _mm_packus_epi32(_mm256_castsi256_si128(one), _mm256_extracti128_si256(one, 1));
}
#endif

#ifdef __AVX512F__
inline __m512 widened(const Float16* x) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))); }
inline __m512 widened(const BFloat16* x) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
inline __m256i narrowed(const float* x, Float16) { return _mm512_cvtps_ph(_mm512_loadu_ps(x), _MM_FROUND_TO_NEAREST_INT); }
inline __m256i narrowed(const float* x, BFloat16) {
    __m512i all = _mm512_loadu_si512(x), m = _mm512_and_si512(all, _mm512_set1_epi32(0x7fffffff)), high = _mm512_srli_epi32(all, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1)), sign = _mm512_and_si512(high, _mm512_set1_epi32(0x8000));
    __m512i number = _mm512_srli_epi32(_mm512_add_epi32(all, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __mmask16 is_nan = _mm512_cmpgt_epi32_mask(m, _mm512_set1_epi32(0x7f800000));
    return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(number, is_nan, sign, _mm512_set1_epi32(0x7fc0)));
}
#endif

template <class Half>
[[gnu::always_inline]] inline void widen(const Half* x, float* y, ptrdiff_t n) {
    ptrdiff_t i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= n; i += 16) _mm512_storeu_ps(y + i, widened(x + i));
#endif
#ifdef __AVX2__
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(y + i, widened_8(x + i));
    if (n >= 8 && i < n) _mm256_storeu_ps(y + n - 8, widened_8(x + n - 8)), i = n;  // some again, not one by one
#endif
#pragma omp simd
    for (ptrdiff_t j = i; j < n; ++j) y[j] = x[j];
}

template <class Half>
[[gnu::always_inline]] inline void narrow(const float* x, Half* y, ptrdiff_t n) {
    ptrdiff_t i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= n; i += 16) _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + i), narrowed(x + i, Half()));
#endif
#ifdef __AVX2__
    for (; i + 8 <= n; i += 8) _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), narrowed_8(x + i, Half()));
    if (n >= 8 && i < n) _mm_storeu_si128(reinterpret_cast<__m128i*>(y + n - 8), narrowed_8(x + n - 8, Half())), i = n;
#endif
#pragma omp simd
    for (ptrdiff_t j = i; j < n; ++j) y[j].bits = Half::rounded(x[j]);
}

}  // namespace
