// Selection of the K largest of a stream of keys in shared memory: a bounded buffer that is cut back to its largest
// keys whenever it holds too many, and a level that rises with every cut. A key below the level cannot be among the K
// largest.
//
// A key has 64 bits: the value's bits, mapped so that unsigned integers sort like the values, then the complement of
// the flat index. Keys are distinct, and "larger key" means exactly "larger value, or equal value and smaller index",
// so every result below is unique, regardless of the order in which threads append.
#pragma once

typedef unsigned long long Key;

// Maps -0.0 to +0.0, so that the two compare equal. Not for NaN.
static __device__ __forceinline__ Key make_key(float value, unsigned index) {
    const unsigned bits = __float_as_uint(value == 0.0f ? 0.0f : value);
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (Key)ordered << 32 | (Key)(0xffffffffu - index);
}

static __device__ __forceinline__ unsigned key_index(Key key) {
    return 0xffffffffu - (unsigned)key;
}

static __device__ __forceinline__ float key_value(Key key) {
    const unsigned ordered = (unsigned)(key >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

const int DIGIT_BITS = 8;
const int DIGITS = 1 << DIGIT_BITS;

// At the start of the block's dynamic shared memory, before the key buffer.
struct Selection {
    Key level;       // keys below it are dropped; all ones if no key is wanted
    unsigned count;  // keys appended so far; may exceed the capacity, the excess is not stored
    unsigned digit, above, inside;
    unsigned base, last;
    unsigned histogram[DIGITS];
};

// Finds the digit of the wanted-th largest key, counted from the highest digit down. Called by warp 0.
static __device__ void find_digit(Selection& s, unsigned wanted) {
    const unsigned lane = threadIdx.x;
    const int each = DIGITS / 32;
    const int top = DIGITS - 1 - each * (int)lane;  // this lane's digits are top, top-1, ..., top-each+1
    unsigned sum = 0;
    for (int i = 0; i < each; ++i) sum += s.histogram[top - i];
    unsigned upto = sum;  // keys in this lane's digits and all higher ones
    for (int step = 1; step < 32; step *= 2) {
        const unsigned other = __shfl_up_sync(0xffffffffu, upto, step);
        if ((int)lane >= step) upto += other;
    }
    unsigned above = upto - sum;
    if (above < wanted && wanted <= upto) {  // true for exactly one lane
        int digit = top;
        while (above + s.histogram[digit] < wanted) above += s.histogram[digit--];
        s.digit = (unsigned)digit;
        s.above = above;
        s.inside = s.histogram[digit];
    }
}

// Cuts `held` keys (more than `limit`, which is at least k) back to between k and `limit` of the largest by radix
// selection; the level becomes a lower bound of the k-th largest. Ends with a barrier.
static __device__ void cut_back(Selection& s, Key* keys, unsigned held, unsigned k, unsigned limit) {
    Key prefix = 0, decided = 0;
    unsigned wanted = k;  // rank of the k-th largest among the keys that share the prefix
    for (int shift = 64 - DIGIT_BITS;; shift -= DIGIT_BITS) {
        for (unsigned i = threadIdx.x; i < DIGITS; i += blockDim.x) s.histogram[i] = 0;
        __syncthreads();  // barrier: histogram is zero
        for (unsigned i = threadIdx.x; i < held; i += blockDim.x) {
            const Key key = keys[i];
            if ((key & decided) == prefix) atomicAdd(&s.histogram[(unsigned)(key >> shift) & (DIGITS - 1)], 1u);
        }
        __syncthreads();  // barrier: digits are counted
        if (threadIdx.x < 32) find_digit(s, wanted);
        __syncthreads();  // barrier: digit is chosen
        prefix |= (Key)s.digit << shift;
        decided |= (Key)(DIGITS - 1) << shift;
        wanted -= s.above;
        const unsigned kept = k - wanted + s.inside;  // keys at or above the prefix
        if (kept <= limit || shift == 0) break;       // keys are distinct: after the last digit kept == k
    }
    if (threadIdx.x == 0) {
        s.level = prefix;
        s.count = 0;
    }
    // In place: a round writes only below the end of the keys read so far.
    for (unsigned base = 0; base < held; base += blockDim.x) {
        const unsigned i = base + threadIdx.x;
        const Key key = i < held ? keys[i] : 0;
        __syncthreads();  // barrier: keys of this round are read before any is written
        if (i < held && key >= prefix) keys[atomicAdd(&s.count, 1u)] = key;
    }
    __syncthreads();  // barrier: cut is complete
}

// Appends the keys key_of(bit) of every thread's `pending` bits. Called by all threads of the block, after a barrier
// since the last change of the selection; on return at most `limit` keys are held, and every thread may read s.
template <typename KeyOf>
static __device__ void offer(Selection& s, Key* keys, unsigned capacity, unsigned k, unsigned limit, unsigned pending,
                             KeyOf key_of) {
    for (;;) {
        const Key level = s.level;
        for (unsigned rest = pending; rest; rest &= rest - 1) {
            if (key_of(__ffs(rest) - 1) < level) pending &= ~(rest & (0u - rest));
        }
        if (pending) {
            unsigned slot = atomicAdd(&s.count, (unsigned)__popc(pending));
            for (; pending && slot < capacity; pending &= pending - 1) keys[slot++] = key_of(__ffs(pending) - 1);
        }
        const int more = __syncthreads_or(pending != 0);
        const unsigned held = s.count < capacity ? s.count : capacity;
        __syncthreads();  // barrier: all threads have read the count
        if (held > limit) cut_back(s, keys, held, k, limit);
        if (!more) return;  // the buffer was full and has been cut back: retry with the rest
    }
}

// Sorts `held` keys, largest first, with a thread for each: the position of a key is the number of larger keys. Takes
// two barriers instead of dozens. Ends with a barrier.
static __device__ void rank_keys(Key* keys, unsigned held) {
    const Key mine = threadIdx.x < held ? keys[threadIdx.x] : 0;
    unsigned larger = 0;
    for (unsigned i = 0; i < held; ++i) larger += keys[i] > mine;
    __syncthreads();  // barrier: all keys are ranked
    if (threadIdx.x < held) keys[larger] = mine;
    __syncthreads();  // barrier: keys are placed
}

// Sorts `held` keys, largest first (bitonic sort). Ends with a barrier.
static __device__ void sort_keys(Key* keys, unsigned held) {
    unsigned size = 1;
    while (size < held) size *= 2;
    for (unsigned i = held + threadIdx.x; i < size; i += blockDim.x) keys[i] = 0;  // below every real key
    __syncthreads();  // barrier: padding is zero
    for (unsigned run = 2; run <= size; run *= 2) {
        for (unsigned stride = run / 2; stride > 0; stride /= 2) {
            for (unsigned i = threadIdx.x; i < size / 2; i += blockDim.x) {
                const unsigned low = 2 * i - (i & (stride - 1)), high = low + stride;
                const Key a = keys[low], b = keys[high];
                const bool descending = (low & run) == 0;
                if ((a < b) == descending) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();  // barrier: sorting step is complete
        }
    }
}
