// Parameters of the kernels. kernels/structs.py mirrors the structs field by field; a test compares the offsets.
// Everything that varies between calls is in Image, in device memory, so that a captured graph can be replayed with
// other images.
#pragma once

// One image of a batch: network coordinate = scale * source coordinate + shift.
struct Image {
    unsigned long long pixels;  // device address of uint8 rows, channels packed, blue first; 0: no image
    double scale_x, scale_y, shift_x, shift_y;
    int pitch;  // bytes from one row to the next
    int width, height;
    int channels;                  // 1, 3 or 4
    int left, top, right, bottom;  // network pixels that the image covers; the others hold pad_value
    int pad_value;
    int half_pixel;   // pixel centres at half-integers (cv2.resize), or at integers (cv2.warpAffine)
    int replicate;    // outside the image: its edge pixel, or pad_value
    float threshold;  // minimum stored heatmap value
    int top_k;        // maximum number of detections
    int reserved;
};

struct PreprocessParams {
    const Image* images;
    const float* levels;  // [3][256], channels in the tensor's order: the tensor value of each grey level
    void* output;         // [N][3][height][width]
    int width, height;
    int rgb;  // order of the tensor's channels
    int reserved;
};

enum BoxEncoding { BOX_WH = 0, BOX_LTRB = 1, BOX_LOG_WH = 2 };
enum ExtraKind { EXTRA_RAW = 0, EXTRA_POINTS = 1 };
enum ExtraUnits { UNITS_CELLS = 0, UNITS_INPUT = 1, UNITS_BOX = 2 };
enum ExtraOrigin { ORIGIN_CELL = 0, ORIGIN_CENTRE = 1, ORIGIN_TOP_LEFT = 2 };

const int MAX_EXTRA_HEADS = 16;

struct ExtraHead {
    const void* data;  // [N][channels][height][width]
    int channels;
    int half;  // element type: fp16, or fp32
    int kind, units, origin;
    int swap;    // pairs are (y, x)
    int column;  // first column of its values in an output row
    int reserved;
};

struct DecodeParams {
    const void* heatmap;       // [N][classes][height][width], fp16 or fp32 by the entry point
    const void* box;           // [N][2 or 4][height][width]
    const void* offset;        // [N][2][height][width], or null
    const Image* images;       // [N]
    unsigned* counters;        // [N][2]: keys in the list, blocks finished. Zero before the first launch and after each
    unsigned long long* keys;  // [N][gridDim.x][list_keys], any content
    int* count;                // [N]
    float* xyxy;               // [N][rows][4]
    float* score;              // [N][rows]
    int* label;                // [N][rows]
    float* extra;              // [N][rows][extra_columns]
    double cell_offset;
    int classes, height, width;
    int stride;
    int rows;         // output rows of an image, at least its top_k
    int list_keys;    // most keys that a block appends to the list; at least rows
    int buffer_keys;  // capacity in shared memory; more than list_keys, and at least its next power of two
    int logits;       // the score is the sigmoid of the stored value
    int first;        // of a plateau keep only cells without an equal neighbour before them
    int clip;
    int box_encoding, box_cells, box_swap, box_half;
    int offset_half, offset_swap;
    int extra_count, extra_columns;
    ExtraHead extras[MAX_EXTRA_HEADS];
};
