/* .npy headers: what is read and what is refused, byte by byte. */
#include "npy_kit.h"

/* ---- what is read ---- */

static void the_usual_header_is_read(void) {
    for (unsigned major = 1; major <= 3; major++) {
        file f = make(major, usual);
        mp_npy header = parse(f);
        CHECK_EQ(header.major, major);
        CHECK_EQ(header.minor, 0);
        CHECK_EQ(header.data_offset, f.size);
        CHECK(reads(f, header.descr_start, header.descr_stop, "'<f8'"));
        CHECK(!header.fortran_order);
        CHECK_EQ(header.ndim, 2);
        CHECK_EQ(header.shape[0], 3);
        CHECK_EQ(header.shape[1], 4);
        CHECK(reads(f, header.rows_start, header.rows_stop, "3"));
        CHECK(reads(f, header.rows_start, header.dict_stop, "3, 4), }"));
        drop(f);
    }
}

static void keys_stand_in_any_order(void) {
    const char *entries[] = {"'descr': '|u1'", "'fortran_order': True", "'shape': (5, 6)"};
    const unsigned orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    for (size_t i = 0; i < 6; i++) {
        char text[MOST_TEXT];
        (void)snprintf(text, sizeof text, "{%s, %s, %s}\n", entries[orders[i][0]], entries[orders[i][1]], entries[orders[i][2]]);
        file f = make(1, text);
        mp_npy header = parse(f);
        CHECK(reads(f, header.descr_start, header.descr_stop, "'|u1'"));
        CHECK(reads(f, header.rows_start, header.rows_stop, "5"));
        CHECK(reads(f, header.dict_stop, f.size, "\n"));
        CHECK(header.fortran_order && header.ndim == 2 && header.shape[0] == 5 && header.shape[1] == 6);
        drop(f);
    }
}

static void space_may_stand_between_tokens(void) {
    file f = make(
        1,
        " \t\r\n{\n'descr'\t:\r\n[ ( 'a' , '<f8' , ( 2 , ) , ) , ] , 'fortran_order' : False , 'shape' : ( 3 , 4 ) \n } \r\t \n");
    mp_npy header = parse(f);
    CHECK(reads(f, header.descr_start, header.descr_stop, "[ ( 'a' , '<f8' , ( 2 , ) , ) , ]"));
    CHECK(reads(f, header.dict_stop, f.size, " \r\t \n"));
    CHECK_EQ(header.shape[1], 4);
    drop(f);
    header = accept(3, "{'descr':'<f8','fortran_order':False,'shape':(7,)}");
    CHECK_EQ(header.dict_stop, header.data_offset);
    CHECK(header.ndim == 1 && header.shape[0] == 7);
}

static void shapes_are_tuples_of_integers(void) {
    mp_npy header = accept(1, with_shape("()"));
    CHECK(header.ndim == 0 && header.rows_start == header.rows_stop);
    header = accept(1, with_shape("(3,)"));
    CHECK(header.ndim == 1 && header.shape[0] == 3);
    header = accept(1, with_shape("(3,4,)"));
    CHECK(header.ndim == 2 && header.shape[0] == 3 && header.shape[1] == 4);
    header = accept(1, with_shape("(18446744073709551615,)"));
    CHECK_EQ(header.shape[0], UINT64_MAX);
    CHECK_EQ(header.rows_stop - header.rows_start, 20);
    header = accept(1, with_shape("(4294967295, 4294967297)"));
    CHECK_EQ(header.shape[1], UINT64_C(4294967297));
    header = accept(1, with_shape("(18446744073709551615, 18446744073709551615, 0)"));
    CHECK_EQ(header.shape[1], UINT64_MAX);
    CHECK_EQ(accept(1, with_shape("(0, 18446744073709551615, 2)")).shape[0], 0);
}

static void shapes_have_up_to_64_extents(void) {
    char shape[MOST_TEXT / 2] = "(";
    for (unsigned n = 1; n <= 64; n++) {
        (void)snprintf(shape + strlen(shape), 8, "%u,", n % 2 ? 1 : 0);
        (void)snprintf(shape + strlen(shape), 8, ")");
        mp_npy header = accept(1, with_shape(shape));
        CHECK_EQ(header.ndim, n);
        for (unsigned i = 0; i < n; i++) CHECK_EQ(header.shape[i], (i + 1) % 2);
        shape[strlen(shape) - 1] = '\0';
    }
    (void)snprintf(shape + strlen(shape), 8, "1,)");
    refuse(1, with_shape(shape), "shape has more than 64 extents");
}

/* The literal is found from its first byte to its last. */
static void find_each(const char *const literals[]) {
    for (size_t i = 0; literals[i] != NULL; i++) {
        for (unsigned major = 1; major <= 3; major++) {
            file f = make(major, with_descr(literals[i]));
            mp_npy header = parse(f);
            CHECK(reads(f, header.descr_start, header.descr_stop, literals[i]));
            check_offsets(f, &header);
            drop(f);
        }
    }
}

static void descr_is_any_plain_literal(void) {
    find_each(LIST("'<f8'", "\"<f8\"", "''", "u'<f8'", "b\"<f8\"", "'|O'", "'<M8[ns]'", "None", "3", "0", "18446744073709551615"));
    find_each(LIST("()", "[]", "[()]", "[[],]", "(None,)", "[3]", "('<f8', (3,))", "('u', u'b', b'')", "[('a', '<f8', 3)]"));
    find_each(LIST("[('a', '<f8')]", "[('a', '<f8'), ('b', '>i4', (2, 3))]", "[(('title', 'name'), '<f8'), ('', '|V4')]"));
    find_each(LIST("[('x', [('y', '<f8'), ('z', [('w', '|u1')])])]", "('a',18446744073709551615)", "[ 1 , ( 2 , ) , ]"));
    find_each(LIST("'a\\'b'", "\"a\\\"b\"", "'a\"b'", "\"a'b\"", "'\\\\'", "'a\\\\\\'b'", "'{}[]():,'", "'#'", "'\xe9\xff\x80'",
                   "'\tL'"));
}

static void python_2_is_understood(void) {
    CHECK_EQ(accept(1, "{u'descr': u'<f8', b'fortran_order': False, \"shape\": (3L,), }\n").shape[0], 3);
    for (unsigned major = 1; major <= 2; major++) {
        file f = make(major, python2);
        mp_npy header = parse(f);
        CHECK(reads(f, header.descr_start, header.descr_stop, "[('a', '<f8', (2 , 3 )), ('L 1L', '|S5')]"));
        CHECK(reads(f, header.rows_start, header.rows_stop, "3"));
        CHECK(reads(f, header.rows_start, header.dict_stop, "3 , 40 ), }"));
        CHECK(header.fortran_order && header.ndim == 2 && header.shape[0] == 3 && header.shape[1] == 40);
        drop(f);
    }
    file f = make(1, with_descr("('\\'1L', \"\\\\\", 0L, 2L)"));
    mp_npy header = parse(f);
    CHECK(reads(f, header.descr_start, header.descr_stop, "('\\'1L', \"\\\\\", 0 , 2 )"));
    drop(f);
    f = make(2, with_descr("12L"));
    header = parse(f);
    CHECK(reads(f, header.descr_start, header.descr_stop, "12"));
    CHECK(reads(f, header.descr_stop, header.descr_stop + 2, " ,"));
    drop(f);
}

static void descr_is_nested_up_to_32_deep(void) {
    char literal[256], *at;
    for (int depth = 1; depth <= 33; depth++) {
        at = literal;
        for (int i = 0; i < depth; i++) *at++ = i % 3 ? '(' : '[';
        for (int i = depth - 1; i >= 0; i--, *at++ = ',') *at++ = i % 3 ? ')' : ']';
        at[-1] = '\0';
        if (depth <= 32) (void)accept(1, with_descr(literal));
        else refuse(1, with_descr(literal), "descr is nested more than 32 deep");
    }
    (void)accept(
        1, with_descr(
               "[(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),(),()]"));
}

/* ---- what is refused ---- */

static const char *plain(const char *text) { return text; }

static const char *with_order(const char *order) {
    static char text[MOST_TEXT];
    (void)snprintf(text, sizeof text, "{'descr': '<f8', 'fortran_order': %s, 'shape': (3,)}\n", order);
    return text;
}

/* What stands in front of the last entry, and behind it. */
static const char *with_start(const char *start) {
    static char text[MOST_TEXT];
    (void)snprintf(text, sizeof text, "%s: '<f8', 'fortran_order': False, 'shape': (3,)}\n", start);
    return text;
}

static const char *with_end(const char *end) {
    static char text[MOST_TEXT];
    (void)snprintf(text, sizeof text, "{'descr': '<f8', 'fortran_order': False, 'shape': (3,)%s\n", end);
    return text;
}

static void refuse_each(const char *(*wrap)(const char *), const char *why, const char *const texts[]) {
    for (size_t i = 0; texts[i] != NULL; i++) {
        for (unsigned major = 1; major <= 3; major++) refuse(major, wrap(texts[i]), why);
    }
}

#define REFUSE(wrap, why, ...) refuse_each(wrap, why, LIST(__VA_ARGS__))

static const char *const comma = "a comma or a closing bracket is missing";
static const char *const number = "a number is not a plain decimal integer";
static const char *const zero = "an integer begins with a zero";
static const char *const wide = "an integer does not fit in 64 bits";
static const char *const lone = "a tuple of one item needs a comma";
static const char *const early = "the header ends within its dict";
static const char *const no_key = "a key is not a string";
static const char *const no_dict = "the header is not a dict";
static const char *const unknown = "a key is none of descr, fortran_order and shape";
static const char *const missing = "one of the keys descr, fortran_order and shape is missing";
static const char *const twice = "a key stands there twice";

static void other_keys_are_refused(void) {
    REFUSE(with_start, unknown, "{''", "{'desc'", "{'descrs'", "{'Descr'", "{'d\\x65scr'", "{'descr '", "{' descr'");
    REFUSE(with_start, no_key, "{descr", "{1", "{, 'descr'", "{ur'descr'", "{B'descr'", "{None", "{('descr',)", "{u 'descr'", "{");
    REFUSE(with_start, twice, "{'descr': '<f8', 'descr'", "{'descr': 1, u'descr'");
    REFUSE(with_end, twice, ", 'shape': (3,)}", ", u'descr': '<f8'}", ", \"fortran_order\": 1}");
    REFUSE(with_end, unknown, ", 'more': 1}", ", 'a'}");
    REFUSE(plain, missing, "{}", "{'descr': '<f8', 'fortran_order': False, }\n", "{'descr': '<f8', 'shape': (3,), }\n",
           "{'fortran_order': False, 'shape': (3,), }\n", "{'shape': ()}");
    REFUSE(plain, "a colon is missing behind a key", "{'descr' '<f8'}", "{'descr', 'shape'}", "{'shape' (3,)}", "{'shape'}",
           "{'descr' 'shape': 1}", "{'descr'=1}");
}

static void other_dicts_are_refused(void) {
    REFUSE(plain, early, "", " \n", "{", "{'descr'", "{'descr':", "{'descr': '<f8'", "{'descr': (", "{'descr': '<f8', ");
    REFUSE(plain, no_dict, "[]\n", "dict()\n", "({})\n", "'descr'\n", "\f{}\n", "\xef\xbb\xbf{}\n", "# so\n{}\n", "}", "None",
           ",{}");
    REFUSE(with_end, no_key, ",,}", ",, }", ", # so\n }", ", **more}");
    REFUSE(with_end, comma, "]", ")", " 'descr': 1}", " # so\n}", ":}", " + ()}", "(3,)}", "[0]}", ".a}", "\f}", "\\\n}", "; }");
    REFUSE(with_end, early, "", ",", ", ");
    REFUSE(with_end, "something stands behind the dict", "} x", "}}", "},", "} # so", "}\f", "}['descr']", "}.a", "} or 1", "}\v",
           "};", "}\\");
}

static void other_orders_are_refused(void) {
    REFUSE(with_order, "fortran_order is neither True nor False", "1", "0", "None", "true", "'False'", "Truely", "False_", "True1",
           "Tru", "not True", "(True)", "False\xe9", "", "[]", "TrueFalse", "C", "-True");
    REFUSE(with_order, comma, "True or 1", "True()", "False.a", "True False", "True==1", "True'a'");
}

static void other_shapes_are_refused(void) {
    REFUSE(with_shape, "shape is not a tuple", "3", "[3, 4]", "None", "'(3,)'", "tuple()", "{3}", "", "*(3,)");
    REFUSE(with_shape, "shape holds something else than non-negative integers", "((3,))", "(-1,)", "(+1,)", "(3, -4)", "('3',)",
           "(None,)", "(True,)", "(.5,)", "(,)", "(3,,)", "(,3)", "(n,)", "(L,)", "(*a,)", "([],)", "(~3,)", "(# so\n3,)");
    REFUSE(with_shape, number, "(3.0,)", "(3.,)", "(3e1,)", "(3j,)", "(0x10,)", "(0o7,)", "(0b1,)", "(1_000,)", "(3l,)", "(3LL,)",
           "(3L4,)", "(3L.,)", "(3\xb2,)", "(3if 1else 4,)");
    REFUSE(with_shape, zero, "(03,)", "(00,)", "(00L,)", "(4, 007)");
    REFUSE(with_shape, comma, "(3 4)", "(3 L,)", "(3*4,)", "(3]", "(3}", "(3 if 1 else 4,)", "(3; 4)", "(3 #\n,)", "(3,) + (4,)");
    REFUSE(with_shape, lone, "(3)", "( 12345 )", "(0)", "(3)[0]");
    REFUSE(with_shape, wide, "(18446744073709551616,)", "(18446744073709551620,)", "(99999999999999999999999999999999,)",
           "(0, 18446744073709551616)", "(184467440737095516150,)");
    REFUSE(with_shape, too_many, "(4294967296, 4294967296)", "(2, 9223372036854775808)", "(18446744073709551615, 1, 2)",
           "(3, 6148914691236517206)", "(2, 18446744073709551615)", "(65536, 65536, 65536, 65536)");
    (void)accept(1, with_shape("(3, 6148914691236517205)"));
}

static void other_descrs_are_refused(void) {
    static const char *const other = "descr holds something else than strings, integers, None, tuples and lists";
    REFUSE(with_descr, other, "", "True", "f8", "f'<f8'", "r'<f8'", "U'<f8'", "ub'<f8'", "u '<f8'", "-1", "...", "{'a': 1}", "{1}",
           "Nonesuch", "None_", "None\xe9", "__import__('os')", "(-1,)", "(,)", "[,]", "['a',,]", "[True]", "lambda: 0", "(yield)",
           "`1`", "*[1]", "[x for x in ()]", ".5", "(# so\n1,)", "\\\n1", "(u)", "[b]");
    REFUSE(with_descr, lone, "('<f8')", "[(3)]", "([])", "(((), ()))", "(None)");
    REFUSE(with_descr, comma, "'a' 'b'", "'''a'''", "\"\"\"\"\"\"", "('a' 'b')", "['a' u'b',]", "'a' + 'b'", "'a'.b", "'a'[0]",
           "('a', 'b']", "['a', 'b')", "[1 2]", "None()", "'a' % 1", "['a' for x in ()]", "'a' if 1 else 'b'", "[1:2]", "()()",
           "1 - 1", "1 L", "None None");
    REFUSE(with_descr, number, "1.5", "1.", "1e5", "1L5", "1l", "0x1", "1_0", "1j", "[1, 2.0]", "1LL", "1else");
    REFUSE(with_descr, zero, "01", "[00]", "(0, 007)");
    REFUSE(with_descr, wide, "18446744073709551616", "[1, (99999999999999999999,)]");
}

static void open_strings_are_refused(void) {
    REFUSE(with_descr, "a string does not end on its line", "'a\nb'", "'a\rb'", "'a\\\nb'", "'a\\\rb'", "\"a\\\"", "u\"a", "\"a'");
    REFUSE(plain, "a string has no end", "{'descr': '<f8", "{'descr': '<f8\\", "{'descr': '<f8\\'", "{'", "{u\"");
    REFUSE(plain, "a string does not end on its line", "{'\n", "{'descr\n': 1}");
    refuse_file(make_n(1, "{'descr': 'a\0b'", 15), "a string holds a NUL byte");
    refuse_file(make_n(1, "{'descr': 'a\\\0b'", 16), "a string holds a NUL byte");
}

static void longs_ended_with_python_2(void) {
    refuse(3, python2, number);
    refuse(1, with_shape("(3L)"), lone);
    refuse(3, with_shape("(3L,)"), number);
    refuse(3, with_descr("[1L]"), number);
}

/* A zero byte at each place in turn: it is never let pass. */
static void zero_bytes_are_refused(void) {
    for (size_t i = 0; usual[i] != '\0'; i++) {
        file f = make(1, usual);
        f.bytes[10 + i] = '\0';
        CHECK(!try_bytes(f.bytes, f.size));
        drop(f);
    }
}

/* Integers that came before have not lost their L. */
static void a_refusal_changes_no_byte(void) {
    refuse(1, "{'shape': (3L, 4L), 'fortran_order': False, 'descr': [('a', '<f8', (2L,)), x]}\n",
           "descr holds something else than strings, integers, None, tuples and lists");
    refuse(1, "{'shape': (3L, 4L), 'fortran_order': False, 'descr': '<f8'}  x\n", "something stands behind the dict");
    refuse(2, "{'shape': (3L, 4L), 'fortran_order': False, }\n", "one of the keys descr, fortran_order and shape is missing");
}

/* ---- how long it is ---- */

static void check_measure(const char *bytes, size_t size, const char *why) {
    file f = copy_of(bytes, size);
    mp_npy header;
    CHECK_EQ(mp_npy_measure(f.bytes, size, &header), MP_ERR_INVALID);
    CHECK(header.problem != NULL && strcmp(header.problem, why) == 0);
    CHECK_EQ(header.data_offset, 0);
    drop(f);
}

static void the_first_bytes_tell_the_length(void) {
    const size_t lengths[] = {0, 1, 118, 255, 256, 65535, 65536, 1 << 20, LONGEST - 12, LONGEST - 11, (1 << 24) | 1, UINT32_MAX};
    for (unsigned major = 1; major <= 3; major++) {
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
            char first[MP_NPY_PREAMBLE] = {'\x93', 'N', 'U', 'M', 'P', 'Y', (char)major};
            size_t start = major == 1 ? 10 : 12, length = major == 1 ? lengths[i] & 0xFFFF : lengths[i];
            mp_npy header = {.ndim = 7, .problem = "none"};
            for (size_t k = 8; k < start; k++) first[k] = (char)(length >> (8 * (k - 8)) & 255);
            for (size_t size = 0; size < start; size++) check_measure(first, size, "the file is too short to be a .npy file");
            if (start + length > LONGEST) {
                check_measure(first, start, "the header is longer than 1 MiB");
            } else {
                CHECK_EQ(mp_npy_measure(first, start, &header), MP_OK);
                CHECK_EQ(header.data_offset, start + length);
                CHECK(header.major == major && header.minor == 0 && header.ndim == 0 && header.problem == NULL);
            }
        }
    }
}

static void other_files_are_refused(void) {
    const char *const magics[] = {"\x93NUMPX\1\0\0\0\0", "\x93numpy\1\0\0\0\0", "PK\3\4........", "\x93NUMP\0\1\0\0\0\0",
                                  "#!/bin/sh..."};
    for (size_t i = 0; i < 5; i++) {
        for (size_t size = 6; size <= 12; size++) check_measure(magics[i], size, "not a .npy file: the magic is missing");
    }
    check_measure("P", 1, "not a .npy file: the magic is missing");
    check_measure("\x93M", 2, "not a .npy file: the magic is missing");
    mp_npy header;
    CHECK_EQ(mp_npy_measure(NULL, 0, &header), MP_ERR_INVALID);
}

static void other_versions_are_refused(void) {
    for (unsigned major = 0; major < 256; major++) {
        for (unsigned minor = 0; minor < 256; minor++) {
            const char first[MP_NPY_PREAMBLE] = {'\x93', 'N', 'U', 'M', 'P', 'Y', (char)major, (char)minor};
            mp_npy header;
            if (minor == 0 && major >= 1 && major <= 3) continue;
            check_measure(first, 8, "this version of the .npy format is not known");
            CHECK_EQ(mp_npy_measure(first, sizeof first, &header), MP_ERR_INVALID);
            CHECK(header.major == major && header.minor == minor);
        }
    }
}

static void the_whole_header_is_needed(void) {
    file f = make(1, usual);
    refuse_file(copy_of(f.bytes, f.size - 1), "the file ends within its header");
    refuse_file(copy_of(f.bytes, 10), "the file ends within its header");
    refuse_file(copy_of(f.bytes, 9), "the file is too short to be a .npy file");
    refuse_file(copy_of("PK", 2), "not a .npy file: the magic is missing");
    char *longer = malloc(f.size + 1);
    CHECK(longer != NULL);
    memcpy(longer, f.bytes, f.size);
    longer[f.size] = ' ';
    refuse_file((file){longer, f.size + 1}, "there are more bytes than the header has");
    drop(f);
}

/* Big headers: as many fields as fit, and brackets to the end. */
static void long_headers_are_read(void) {
    static char text[LONGEST - 12];
    const char *tail = "], 'fortran_order': False, 'shape': (3L, 4L), }\n";
    size_t at = (size_t)sprintf(text, "{'descr': ["), fields = 0;
    for (; at + 64 + strlen(tail) < sizeof text; fields++)
        at += (size_t)sprintf(text + at, "('field_%zu', '<f8', (2L, 3L)), ", fields);
    memset(text + at, ' ', sizeof text - at);
    memcpy(text + at, tail, strlen(tail));
    file f = make_n(2, text, sizeof text);
    mp_npy header = parse(f);
    CHECK_EQ(header.data_offset, LONGEST);
    CHECK_EQ(header.descr_stop, 12 + at + 1);
    CHECK_EQ(header.shape[1], 4);
    CHECK(memchr(f.bytes, 'L', f.size) == NULL);
    drop(f);
    memset(text + 11, '[', sizeof text - 11);
    refuse_file(make_n(2, text, sizeof text), "descr is nested more than 32 deep");
    memset(text + 10, '1', sizeof text - 10);
    refuse_file(make_n(2, text, sizeof text), "an integer does not fit in 64 bits");
    memset(text + 10, '\'', 1);
    refuse_file(make_n(2, text, sizeof text), "a string has no end");
}

/* ---- damaged files ---- */

static void every_truncation_is_noticed(void) {
    const char *const texts[] = {usual, python2};
    for (size_t t = 0; t < 2; t++) {
        for (unsigned major = 1; major <= 2; major++) {
            file f = make(major, texts[t]);
            size_t start = major == 1 ? 10 : 12, dict = (size_t)(strrchr(texts[t], '}') - texts[t]) + 1;
            for (size_t size = 0; size < f.size; size++) CHECK(!try_bytes(f.bytes, size));
            CHECK(try_bytes(f.bytes, f.size));
            for (size_t length = 0; length <= strlen(texts[t]); length++) {
                file cut = make_n(major, texts[t], length);
                CHECK_EQ(try_bytes(cut.bytes, start + length), length >= dict);
                drop(cut);
            }
            drop(f);
        }
    }
}

static void every_byte_may_be_any_other(void) {
    const char *const texts[] = {usual, python2};
    size_t taken = 0, tried = 0;
    for (size_t t = 0; t < 2; t++) {
        for (unsigned major = 1; major <= 3; major++) {
            file f = make(major, texts[t]);
            for (size_t i = 0; i < f.size; i++) {
                char kept = f.bytes[i];
                for (int c = 0; c < 256; c++, tried++) {
                    f.bytes[i] = (char)c;
                    taken += try_bytes(f.bytes, f.size);
                }
                f.bytes[i] = kept;
            }
            drop(f);
        }
    }
    CHECK(taken > tried / 100 && taken < tried / 4);
}

/* The tokens of a header, each left out, doubled or exchanged now and then. */
static size_t write_tokens(dice *luck, char *text) {
    static const char right[] = "{'descr':|'<f8'|,'fortran_order':|False|,'shape':|(|3|,|4L|,|)|,|}|\n",
                      wild[] = "{}[]():,'\"\\0L\t N4u#";
    size_t length = 0;
    for (const char *token = right, *end; *token != '\0'; token = end + (*end == '|')) {
        end = token + strcspn(token, "|");
        bool odd = roll_below(luck, 12) == 0;
        for (size_t n = odd ? roll_below(luck, 3) : 1; n > 0; n--) {
            memcpy(text + length, token, (size_t)(end - token));
            length += (size_t)(end - token);
        }
        if (odd && roll_below(luck, 2) == 0) text[length++] = wild[roll_below(luck, sizeof wild)];
    }
    return length;
}

static void random_tokens_do_no_harm(void) {
    dice luck = {.state = check_seed = 5};
    unsigned taken = 0, rounds = 100000;
    for (unsigned round = 0; round < rounds; round++) {
        char text[MOST_TEXT];
        size_t length = write_tokens(&luck, text);
        file f = make_n(1 + (unsigned)roll_below(&luck, 3), text, length);
        taken += try_bytes(f.bytes, f.size);
        drop(f);
    }
    CHECK(taken > rounds / 10 && taken < rounds / 2);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(the_usual_header_is_read);
    TEST(keys_stand_in_any_order);
    TEST(space_may_stand_between_tokens);
    TEST(shapes_are_tuples_of_integers);
    TEST(shapes_have_up_to_64_extents);
    TEST(descr_is_any_plain_literal);
    TEST(python_2_is_understood);
    TEST(descr_is_nested_up_to_32_deep);
    TEST(other_keys_are_refused);
    TEST(other_dicts_are_refused);
    TEST(other_orders_are_refused);
    TEST(other_shapes_are_refused);
    TEST(other_descrs_are_refused);
    TEST(open_strings_are_refused);
    TEST(longs_ended_with_python_2);
    TEST(zero_bytes_are_refused);
    TEST(a_refusal_changes_no_byte);
    TEST(the_first_bytes_tell_the_length);
    TEST(other_files_are_refused);
    TEST(other_versions_are_refused);
    TEST(the_whole_header_is_needed);
    TEST(long_headers_are_read);
    TEST(every_truncation_is_noticed);
    TEST(every_byte_may_be_any_other);
    TEST(random_tokens_do_no_harm);
    return check_end();
}
