/* What a vector is, for one element type T and one register width of BYTES (0: no vectors, one lane).
   V holds W elements of T, D holds DW doubles; one V widens to PARTS of D. */

#define W (BYTES ? BYTES / T_SIZE : 1)
#define DW (BYTES ? BYTES / 8 : 1)
#define PARTS (W / DW)
#define U (LANES / W)   /* registers for one row of lanes */
#define DU (LANES / DW) /* the same, in double precision */

#undef SPLAT
#undef WHERE
#if BYTES
/* aligned to the element only: rows start anywhere. */
typedef T V __attribute__((vector_size(BYTES), aligned(T_SIZE), may_alias));
typedef double D __attribute__((vector_size(BYTES), aligned(8), may_alias));
typedef int64_t I __attribute__((vector_size(BYTES), aligned(8), may_alias));
#define SPLAT(s) ((s) - (V){0})
#define WHERE(condition) (condition)
#else
typedef T V;
typedef double D;
typedef int64_t I;
#define SPLAT(s) (s)
#define WHERE(condition) (-(I)(condition))
#endif

INLINE V load(const T *p) { return *(const V *)p; }
INLINE void store(T *p, V v) { *(V *)p = v; }

/* Where there are registers enough, what is read of two arrays at once is asked for in the order of its lines, which a compiler
   that unrolls does not keep: a processor then fetches more of it by itself. */
#undef IN_ORDER
#define IN_ORDER (BYTES == 64)
INLINE V load_in_order(const T *p)
{
    V v = load(p);
#if BYTES == 64
    __asm__ volatile("" : "+v"(v));
#endif
    return v;
}

INLINE void widen(D *wide, V v)
{
#if BYTES
    typedef double All __attribute__((vector_size(BYTES / T_SIZE * 8)));
    union {
        All v;
        D d[PARTS];
    } all = {__builtin_convertvector(v, All)};
    for (int i = 0; i < PARTS; i++)
        wide[i] = all.d[i];
#else
    *wide = v;
#endif
}

/* DW elements of T as doubles, and doubles rounded to T. */
INLINE D load_wide(const T *p)
{
#if defined(LNORM_X86) && BYTES == 64 && T_SIZE == 4 /* gcc takes four instructions for one */
    return (D)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(LNORM_X86) && BYTES == 32 && T_SIZE == 4
    return (D)_mm256_cvtps_pd(_mm_loadu_ps(p));
#elif BYTES
    typedef T Few __attribute__((vector_size(BYTES / 8 * T_SIZE), aligned(T_SIZE), may_alias));
    return __builtin_convertvector(*(const Few *)p, D);
#else
    return *p;
#endif
}

#if defined(LNORM_X86) && BYTES == 32
/* A mask of the first `end` elements of T in a register. */
INLINE __m256i first_lanes(int end)
{
    static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i *)(ones + 8 - end * (T_SIZE / 4)));
}
#endif

/* The first `count` of them, the others 0. */
INLINE D load_wide_part(const T *p, int count)
{
#if defined(LNORM_X86) && BYTES == 64 && T_SIZE == 4
    return (D)_mm512_cvtps_pd(_mm256_maskz_loadu_ps((1u << count) - 1, p));
#elif defined(LNORM_X86) && BYTES == 32 && T_SIZE == 4
    return (D)_mm256_cvtps_pd(_mm_maskload_ps(p, _mm256_castsi256_si128(first_lanes(count))));
#else
    T padded[DW] = {0};
    for (int l = 0; l < count; l++)
        padded[l] = p[l];
    return load_wide(padded);
#endif
}

INLINE void store_narrow(T *p, D v)
{
#if BYTES
    typedef T Few __attribute__((vector_size(BYTES / 8 * T_SIZE), aligned(T_SIZE), may_alias));
    *(Few *)p = __builtin_convertvector(v, Few);
#else
    *p = (T)v;
#endif
}

/* v where the condition holds, else 0. */
INLINE D only_where(I condition, D v)
{
#if BYTES
    return (D)((I)v & condition);
#else
    return condition ? v : 0;
#endif
}

INLINE D square_root(D v)
{
#if defined(LNORM_X86) && BYTES == 64
    return (D)_mm512_sqrt_pd((__m512d)v);
#elif defined(LNORM_X86) && BYTES == 32
    return (D)_mm256_sqrt_pd((__m256d)v);
#elif BYTES
    for (int i = 0; i < DW; i++)
        v[i] = sqrt(v[i]);
    return v;
#else
    return sqrt(v);
#endif
}

/* Writes around the caches; p is aligned to BYTES. */
INLINE void stream_to(T *p, V v)
{
#if defined(LNORM_X86) && BYTES == 64 && T_SIZE == 4
    _mm512_stream_ps(p, (__m512)v);
#elif defined(LNORM_X86) && BYTES == 64
    _mm512_stream_pd(p, (__m512d)v);
#elif defined(LNORM_X86) && BYTES == 32 && T_SIZE == 4
    _mm256_stream_ps(p, (__m256)v);
#elif defined(LNORM_X86) && BYTES == 32
    _mm256_stream_pd(p, (__m256d)v);
#elif defined(LNORM_X86) && BYTES == 16 && T_SIZE == 4
    _mm_stream_ps(p, (__m128)v);
#elif defined(LNORM_X86) && BYTES == 16
    _mm_stream_pd(p, (__m128d)v);
#else
    store(p, v);
#endif
}

/* Elements from p to the next address that is a multiple of bytes. */
INLINE ptrdiff_t until_aligned(const T *p, uintptr_t bytes) { return (ptrdiff_t)(-(uintptr_t)p % bytes) / T_SIZE; }

/* How far p is behind q within a page, from 1 on. A processor that looks for the store that a load depends on compares no more of
   their addresses: what is read a little behind what was written last would wait for it. */
INLINE uintptr_t behind(const void *p, const void *q) { return ((uintptr_t)q - (uintptr_t)p - 1) % PAGE + 1; }

/* Whether what is read from p and written to q, register by register, is better taken from the end. */
INLINE int downwards(const void *p, const void *q) { return behind(p, q) < behind(q, p); }

/* m elements around the caches: whole lines, and what is left of one at both ends. */
INLINE void stream_row(T *to, const T *from, ptrdiff_t m)
{
    const ptrdiff_t skip = until_aligned(to, LINE), begin = skip < m ? skip : m;
    const ptrdiff_t end = begin + (m - begin) / NARROW * NARROW;
    memcpy(to, from, (size_t)begin * T_SIZE);
    for (ptrdiff_t j = begin; j < end; j += W)
        stream_to(to + j, load(from + j));
    memcpy(to + end, from + end, (size_t)(m - end) * T_SIZE);
}

/* Of m elements that are written soon around the caches, the lines at the ends that others share: they are written through them, and
   stores wait for one another. */
INLINE void fetch_ends(const T *to, ptrdiff_t m)
{
    if (until_aligned(to, LINE))
        PREFETCH_TO_WRITE(to);
    if (until_aligned(to + m, LINE))
        PREFETCH_TO_WRITE(to + m);
}

/* n elements that are read next; or later, to the second level. */
INLINE void fetch(const T *x, ptrdiff_t n, int later)
{
    for (ptrdiff_t j = 0; j < n; j += NARROW)
        if (later)
            PREFETCH_FAR(x + j);
        else
            PREFETCH(x + j);
}

/* Lanes begin ... end - 1 of v. One by one: a masked store to a line beyond the caches holds up those that follow. */
INLINE void store_part(T *p, V v, int begin, int end)
{
    T lanes[W];
    store(lanes, v);
    for (int l = begin; l < end; l++)
        p[l] = lanes[l];
}

/* Those lanes of v, the others 0; and `end` lanes from p, the others `fill`. */
#if defined(LNORM_X86) && BYTES == 64
#define LANES_OF(begin, end) (((1u << (end)) - 1) & ~((1u << (begin)) - 1))
#if T_SIZE == 4
INLINE V only_lanes(V v, int begin, int end) { return (V)_mm512_maskz_mov_ps(LANES_OF(begin, end), (__m512)v); }
INLINE V load_part(const T *p, int end, T fill)
{
    return (V)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), LANES_OF(0, end), p);
}
#else
INLINE V only_lanes(V v, int begin, int end) { return (V)_mm512_maskz_mov_pd(LANES_OF(begin, end), (__m512d)v); }
INLINE V load_part(const T *p, int end, T fill)
{
    return (V)_mm512_mask_loadu_pd(_mm512_set1_pd(fill), LANES_OF(0, end), p);
}
#endif
#undef LANES_OF
#elif defined(LNORM_X86) && BYTES == 32
INLINE V only_lanes(V v, int begin, int end)
{
    return (V)_mm256_andnot_si256(first_lanes(begin), _mm256_and_si256(first_lanes(end), (__m256i)v));
}

INLINE V load_part(const T *p, int end, T fill)
{
    const __m256i mask = first_lanes(end);
#if T_SIZE == 4
    return (V)_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, mask), (__m256)mask);
#else
    return (V)_mm256_blendv_pd(_mm256_set1_pd(fill), _mm256_maskload_pd(p, mask), (__m256d)mask);
#endif
}
#else
INLINE V only_lanes(V v, int begin, int end)
{
    T lanes[3 * W];
    store(lanes + W, v);
    store(lanes + begin, SPLAT((T)0));
    store(lanes + W + end, SPLAT((T)0));
    return load(lanes + W);
}

INLINE V load_part(const T *p, int end, T fill)
{
    T padded[W];
    for (int l = 0; l < W; l++)
        padded[l] = l < end ? p[l] : fill;
    return load(padded);
}
#endif

/* Lanes of a where the mask is -1, which has an element for each 4 bytes of a register, else, where it is 0, of b. */
INLINE V choose(const int32_t *mask, V a, V b)
{
#if BYTES
    const I of_a = *(const I *)mask;
    return (V)(((I)a & of_a) | ((I)b & ~of_a));
#else
    return *mask ? a : b;
#endif
}

/* The lane tree: lane l takes lane l + h for h = LANES/2 ... 1. The same additions whatever the width of a register,
   which is what makes the bits the same everywhere. Here down to the lanes of one register. */
INLINE D fold_registers(const D *lanes)
{
    D t[DU];
    for (int i = 0; i < DU; i++)
        t[i] = lanes[i];
    for (int h = DU / 2; h; h /= 2)
        for (int i = 0; i < h; i++)
            t[i] += t[i + h];
    return t[0];
}

/* One step of the tree for two registers: the first h lanes of each 2h, plus the other h. */
INLINE D fold_pair(D a, D b, int h)
{
#if BYTES == 64
    if (h == 4)
        return SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    if (h == 2)
        return SHUFFLE(a, b, 0, 1, 4, 5, 8, 9, 12, 13) + SHUFFLE(a, b, 2, 3, 6, 7, 10, 11, 14, 15);
    return SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14) + SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#elif BYTES == 32
    if (h == 2)
        return SHUFFLE(a, b, 0, 1, 4, 5) + SHUFFLE(a, b, 2, 3, 6, 7);
    return SHUFFLE(a, b, 0, 2, 4, 6) + SHUFFLE(a, b, 1, 3, 5, 7);
#elif BYTES == 16
    (void)h;
    return SHUFFLE(a, b, 0, 2) + SHUFFLE(a, b, 1, 3);
#else
    (void)h;
    return a + b; /* never: a register of one lane is folded */
#endif
}

/* The same for one register: the first of each 2h lanes, plus the other h. */
INLINE D fold_one(D a, int h)
{
#if BYTES == 64
    if (h == 4)
        return a + SHUFFLE(a, a, 4, 5, 6, 7, 0, 1, 2, 3);
    if (h == 2)
        return a + SHUFFLE(a, a, 2, 3, 0, 1, 6, 7, 4, 5);
    return a + SHUFFLE(a, a, 1, 0, 3, 2, 5, 4, 7, 6);
#elif BYTES == 32
    if (h == 2)
        return a + SHUFFLE(a, a, 2, 3, 0, 1);
    return a + SHUFFLE(a, a, 1, 0, 3, 2);
#elif BYTES == 16
    (void)h;
    return a + SHUFFLE(a, a, 1, 0);
#else
    (void)h;
    return a; /* never, as above */
#endif
}

/* The trees of one row or several at once: of a power of two, or a multiple of DW. sum takes DW doubles at a time. */
INLINE void fold_rows(double *sum, const D *lanes, int rows)
{
    const int together = rows < DW ? rows : DW;
    UNROLL for (int r = 0; r < rows; r += DW)
    {
        D t[DW];
        UNROLL for (int i = 0; i < together; i++) t[i] = lanes[r + i];
        UNROLL for (int h = DW / 2; h; h /= 2) UNROLL for (int i = 0; i < h; i++)
        {
            if (2 * i + 1 < together * 2 * h / DW)
                t[i] = fold_pair(t[2 * i], t[2 * i + 1], h);
            else if (i == 0)
                t[0] = rows == 1 ? fold_one(t[0], h) : fold_pair(t[0], t[0], h);
        }
        *(D *)(sum + r) = t[0];
    }
}
