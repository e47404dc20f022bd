/* npy.c: reads the header of a .npy file, and puts another number of rows into it, without evaluating anything.
 *
 *   0           6       7       8        10 or 12                                                        data_offset
 *   | \x93NUMPY | major | minor | length | {'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }      \n | data ...
 *                                                    ^    ^                                   ^^      ^
 *                                        descr_start |    descr_stop               rows_start ||      dict_stop
 *                                                                                              rows_stop
 *
 *   dict   = "{" key ":" value, three times, "}"       key   = descr | fortran_order | shape, in any order
 *   descr  = string | integer | "None" | "(" descr, ... ")" | "[" descr, ... "]"
 *   order  = "True" | "False"                          shape = "(" integer, ... ")"
 *
 * Items stand between commas, the last may have one too, and a tuple of one item must. Python 2 wrote u and b before strings and L
 * behind integers; each L becomes a space, so that Python 3 reads descr as it then stands.
 *
 * What holds between the calls: a header that mp_npy_parse took is taken again, also after mp_npy_set_rows, and then says the same
 * but for the rows. A refusal changes no byte. Time is linear in `size`, no byte behind it is read, nothing is allocated, and the
 * stack holds DEEPEST brackets at most.
 *
 * Rejected: ast.literal_eval on the header, as NumPy does it. A forged header can exhaust the stack and the memory of Python's
 * compiler, so NumPy stops at 10 000 characters, and with them at tables of some hundred fields; and it does not tell where in the
 * text the rows stand. */
#include "include/mempool.h"

#include <string.h>

enum {
    MAGIC = 6,         /* bytes of the magic; behind them the version, and the length in 2 or 4 bytes */
    LONGEST = 1 << 20, /* NumPy writes some 30 bytes for a field; a forged length of 4 GiB must not cost the caller 4 GiB */
    DEEPEST = 32,      /* a dtype within a dtype takes two brackets */
    MOST_DIGITS = 20,  /* of a number of 64 bits */
    END = -1,
};

typedef struct reader {
    const char *bytes;
    size_t at, stop;
    unsigned depth; /* brackets open in descr */
    unsigned keys;  /* a bit for each that was read */
    mp_npy *out;
} reader;

typedef bool read_item(reader *r);

static bool refuse(const reader *r, const char *why) {
    r->out->problem = why;
    return false;
}

/* At the end of the text it is the end that is unexpected. */
static bool unexpected(const reader *r, const char *why) {
    return refuse(r, r->at < r->stop ? why : "the header ends within its dict");
}

/* ---- bytes and tokens -------------------------------------------------------------------------------------------------------- */

static int peek(const reader *r) { return r->at < r->stop ? (unsigned char)r->bytes[r->at] : END; }

static bool is_space(int c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

static bool is_digit(int c) { return c >= '0' && c <= '9'; }

/* May stand in a name or behind the digits of a number. */
static bool is_word(int c) { return is_digit(c) || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_' || c >= 0x80; }

static bool is_quote(int c) { return c == '\'' || c == '"'; }

static void skip_space(reader *r) {
    while (is_space(peek(r))) r->at++;
}

static bool take(reader *r, int wanted) {
    skip_space(r);
    if (peek(r) != wanted) return false;
    r->at++;
    return true;
}

static bool is_text(const reader *r, size_t start, size_t stop, const char *text) {
    for (; start < stop && *text != '\0' && r->bytes[start] == *text; start++) text++;
    return start == stop && *text == '\0';
}

static bool take_word(reader *r, const char *word) {
    size_t start = r->at;
    while (is_word(peek(r))) r->at++;
    if (is_text(r, start, r->at, word)) return true;
    r->at = start;
    return false;
}

static bool take_string_prefix(reader *r) {
    size_t before = r->at;
    if (peek(r) == 'u' || peek(r) == 'b') r->at++;
    if (is_quote(peek(r))) return true;
    r->at = before;
    return false;
}

/* From quote to quote, whatever the escapes between them mean. */
static bool read_string(reader *r) {
    int quote = peek(r);
    for (r->at++; peek(r) != quote; r->at++) {
        if (peek(r) == '\\') r->at++;
        if (peek(r) == END) return refuse(r, "a string has no end");
        if (peek(r) == '\n' || peek(r) == '\r') return refuse(r, "a string does not end on its line");
        if (peek(r) == '\0') return refuse(r, "a string holds a NUL byte");
    }
    r->at++;
    return true;
}

/* `*digits_stop` is in front of the L. */
static bool read_integer(reader *r, uint64_t *value, size_t *digits_stop) {
    size_t start = r->at;
    for (*value = 0; is_digit(peek(r)); r->at++) {
        uint64_t digit = (uint64_t)(peek(r) - '0');
        if (*value > (UINT64_MAX - digit) / 10) return refuse(r, "an integer does not fit in 64 bits");
        *value = *value * 10 + digit;
    }
    *digits_stop = r->at;
    if (r->bytes[start] == '0' && r->at - start > 1) return refuse(r, "an integer begins with a zero");
    if (r->out->major < 3 && peek(r) == 'L') r->at++;
    if (is_word(peek(r)) || peek(r) == '.') return refuse(r, "a number is not a plain decimal integer");
    return true;
}

/* Behind the opening bracket: items between commas, up to the closing one. */
static bool read_items(reader *r, int close, read_item *item) {
    for (size_t count = 0; !take(r, close); count++) {
        if (!item(r)) return false;
        if (take(r, ',')) continue;
        if (!take(r, close)) return unexpected(r, "a comma or a closing bracket is missing");
        if (close == ')' && count == 0) return refuse(r, "a tuple of one item needs a comma");
        break;
    }
    return true;
}

/* ---- the three values -------------------------------------------------------------------------------------------------------- */

static bool read_literal(reader *r);

static bool read_bracket(reader *r) {
    int close = peek(r) == '(' ? ')' : ']';
    if (r->depth == DEEPEST) return refuse(r, "descr is nested more than 32 deep");
    r->at++;
    r->depth++;
    if (!read_items(r, close, read_literal)) return false;
    r->depth--;
    return true;
}

static bool read_literal(reader *r) {
    uint64_t value;
    size_t digits_stop;
    if (take_string_prefix(r)) return read_string(r);
    if (is_digit(peek(r))) return read_integer(r, &value, &digits_stop);
    if (peek(r) == '(' || peek(r) == '[') return read_bracket(r);
    if (take_word(r, "None")) return true;
    return unexpected(r, "descr holds something else than strings, integers, None, tuples and lists");
}

static bool read_descr(reader *r) {
    r->out->descr_start = r->at;
    if (!read_literal(r)) return false;
    r->out->descr_stop = r->bytes[r->at - 1] == 'L' ? r->at - 1 : r->at; /* the L of an integer that is all of descr */
    return true;
}

static bool read_order(reader *r) {
    r->out->fortran_order = take_word(r, "True");
    if (r->out->fortran_order || take_word(r, "False")) return true;
    return unexpected(r, "fortran_order is neither True nor False");
}

static bool read_extent(reader *r) {
    mp_npy *out = r->out;
    size_t start = r->at, digits_stop;
    if (!is_digit(peek(r))) return unexpected(r, "shape holds something else than non-negative integers");
    if (out->ndim == MP_NPY_MAX_DIMS) return refuse(r, "shape has more than 64 extents");
    if (!read_integer(r, &out->shape[out->ndim], &digits_stop)) return false;
    if (out->ndim++ == 0) {
        out->rows_start = start;
        out->rows_stop = digits_stop;
    }
    return true;
}

/* Whether an array of that shape has a number of elements. With an extent of 0 the others may be anything. */
static bool is_countable(uint64_t rows, const mp_npy *header) {
    for (unsigned i = 1; i < header->ndim; i++) {
        if (header->shape[i] == 0) return true;
    }
    for (unsigned i = 1; i < header->ndim; i++) {
        if (rows > UINT64_MAX / header->shape[i]) return false;
        rows *= header->shape[i];
    }
    return true;
}

static bool read_shape(reader *r) {
    if (!take(r, '(')) return unexpected(r, "shape is not a tuple");
    if (!read_items(r, ')', read_extent)) return false;
    if (!is_countable(r->out->shape[0], r->out)) return refuse(r, "the number of elements does not fit in 64 bits");
    return true;
}

/* ---- the dict ---------------------------------------------------------------------------------------------------------------- */

enum { KEYS = 3, ALL_KEYS = (1 << KEYS) - 1 };

static const struct key {
    const char *name;
    read_item *value;
} keys[KEYS] = {{"descr", read_descr}, {"fortran_order", read_order}, {"shape", read_shape}};

/* Which of the keys stands between these two offsets; KEYS: none. */
static unsigned find_key(const reader *r, size_t start, size_t stop) {
    unsigned i = 0;
    while (i < KEYS && !is_text(r, start, stop, keys[i].name)) i++;
    return i;
}

static bool read_entry(reader *r) {
    if (!take_string_prefix(r)) return unexpected(r, "a key is not a string");
    size_t start = r->at + 1;
    if (!read_string(r)) return false;
    unsigned key = find_key(r, start, r->at - 1);
    if (key == KEYS) return refuse(r, "a key is none of descr, fortran_order and shape");
    if (r->keys & 1U << key) return refuse(r, "a key stands there twice");
    r->keys |= 1U << key;
    if (!take(r, ':')) return unexpected(r, "a colon is missing behind a key");
    skip_space(r);
    return keys[key].value(r);
}

static bool read_dict(reader *r) {
    if (!take(r, '{')) return unexpected(r, "the header is not a dict");
    if (!read_items(r, '}', read_entry)) return false;
    if (r->keys != ALL_KEYS) return refuse(r, "one of the keys descr, fortran_order and shape is missing");
    r->out->dict_stop = r->at;
    skip_space(r);
    if (r->at < r->stop) return refuse(r, "something stands behind the dict");
    return true;
}

/* ---- the header -------------------------------------------------------------------------------------------------------------- */

static mp_status fail(mp_npy *out, const char *why) {
    out->problem = why;
    return MP_ERR_INVALID;
}

static size_t text_start(unsigned major) { return major == 1 ? MAGIC + 4 : MAGIC + 6; }

static size_t little_endian(const char *bytes, size_t count) {
    uint32_t value = 0;
    for (size_t i = count; i > 0; i--) value = value << 8 | (unsigned char)bytes[i - 1];
    return value;
}

mp_status mp_npy_measure(const char *bytes, size_t size, mp_npy *out) {
    static const char *const too_short = "the file is too short to be a .npy file";
    *out = (mp_npy){.problem = NULL};
    if (size > 0 && memcmp(bytes, "\x93NUMPY", size < MAGIC ? size : MAGIC) != 0)
        return fail(out, "not a .npy file: the magic is missing");
    if (size < MAGIC + 2) return fail(out, too_short);
    out->major = (unsigned char)bytes[MAGIC];
    out->minor = (unsigned char)bytes[MAGIC + 1];
    if (out->major < 1 || out->major > 3 || out->minor != 0) return fail(out, "this version of the .npy format is not known");
    size_t start = text_start(out->major);
    if (size < start) return fail(out, too_short);
    size_t length = little_endian(bytes + MAGIC + 2, start - MAGIC - 2);
    if (length > LONGEST - start) return fail(out, "the header is longer than 1 MiB");
    out->data_offset = start + length;
    return MP_OK;
}

/* Behind each integer, and nowhere else outside of strings, an L may stand. */
static void blank_longs(char *bytes, reader *r) {
    while (r->at < r->stop) {
        if (is_quote(peek(r))) {
            (void)read_string(r);
            continue;
        }
        if (peek(r) == 'L') bytes[r->at] = ' ';
        r->at++;
    }
}

mp_status mp_npy_parse(char *bytes, size_t size, mp_npy *out) {
    mp_npy header;
    if (mp_npy_measure(bytes, size, &header) != MP_OK) return fail(out, header.problem);
    if (size < header.data_offset) return fail(out, "the file ends within its header");
    if (size > header.data_offset) return fail(out, "there are more bytes than the header has");
    reader r = {.bytes = bytes, .at = text_start(header.major), .stop = size, .out = &header};
    if (!read_dict(&r)) return fail(out, header.problem);
    r = (reader){.bytes = bytes, .at = text_start(header.major), .stop = header.dict_stop, .out = &header};
    blank_longs(bytes, &r);
    *out = header;
    return MP_OK;
}

/* ---- another number of rows -------------------------------------------------------------------------------------------------- */

/* The digits go to the end of `digits`; how many there are. */
static size_t write_digits(uint64_t value, char digits[MOST_DIGITS]) {
    size_t count = 0;
    do {
        digits[MOST_DIGITS - ++count] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    return count;
}

/* Bytes by which the dict can grow: all behind it, but for a newline at the end. */
static size_t room_behind(const char *bytes, const mp_npy *header) {
    size_t room = header->data_offset - header->dict_stop;
    return room > 0 && bytes[header->data_offset - 1] == '\n' ? room - 1 : room;
}

/* Writes the digits where the old ones are, and has the dict end further right or left. */
static void replace_rows(char *bytes, mp_npy *header, const char *digits, size_t count) {
    size_t old_stop = header->rows_stop, old_dict_stop = header->dict_stop, old_count = old_stop - header->rows_start;
    header->rows_stop = header->rows_start + count;
    header->dict_stop = old_dict_stop + count - old_count;
    if (header->descr_start > old_stop) {
        header->descr_start = header->descr_start + count - old_count;
        header->descr_stop = header->descr_stop + count - old_count;
    }
    memmove(bytes + header->rows_stop, bytes + old_stop, old_dict_stop - old_stop);
    memcpy(bytes + header->rows_start, digits, count);
    for (size_t i = header->dict_stop; i < old_dict_stop; i++) bytes[i] = ' ';
}

mp_status mp_npy_set_rows(char *bytes, size_t size, mp_npy *header, uint64_t rows) {
    char digits[MOST_DIGITS];
    size_t count = write_digits(rows, digits), old_count = header->rows_stop - header->rows_start;
    if (size != header->data_offset) return fail(header, "these are not the bytes of the header");
    if (header->ndim == 0) return fail(header, "an array without dimensions has no rows");
    if (!is_countable(rows, header)) return fail(header, "the number of elements does not fit in 64 bits");
    if (count > old_count && count - old_count > room_behind(bytes, header))
        return fail(header, "the header has no room for so many digits");
    replace_rows(bytes, header, digits + MOST_DIGITS - count, count);
    header->shape[0] = rows;
    header->problem = NULL;
    return MP_OK;
}
