/*
 * What both guests know: a line protocol, and what every page of their memory must hold.
 *
 * The memory is judged by the guest itself: one word a page says what the page was last told to hold, and the page's
 * 1024 words follow from that word and the page's number. Included once by each guest, which gives it `put`.
 */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { PAGE_BYTES = 4096, PAGE_WORDS = 1024, LINE_BYTES = 256 };

/* A page's content: nothing known of it, zeroes, or any larger number, which is the seed of its words. */
enum { UNKNOWN = 0, ZEROES = 1 };

struct memory {
    u32 *words;
    u32 *content;
    u32 pages;
};

/* The words of a page: `first`, `first + step`, `first + 2 * step`, and so on. */
struct words {
    u32 first;
    u32 step;
};

struct verdict {
    u32 verified;
    u32 wrong;
    u32 first_wrong;
};

static struct memory memory;
static u32 ticks;

/* Idle turns between two ticks of a guest that counts by itself. */
static u32 turns_between_ticks = 5;
static u32 turns;
static int counting;

/* Writes one character to the console. */
static void put(char character);

/* Writes the answer to a command that only this guest knows; 0 where it does not know it either. */
static int answer_own(const char *command, char *rest);

/* --- ports --- */

static void out(u32 port, u8 value) {
    __asm__ volatile("outb %0, %w1" : : "a"(value), "Nd"(port));
}

static u8 in(u32 port) {
    u8 value;
    __asm__ volatile("inb %w1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* --- text --- */

static void say(const char *text) {
    while (*text) put(*text++);
}

static void say_number(u32 number) {
    char digits[11];
    int at = sizeof digits - 1;
    digits[at] = 0;
    do {
        digits[--at] = '0' + number % 10;
        number /= 10;
    } while (number);
    say(digits + at);
}

static void end_line(void) {
    say("\r\n");
}

/* Says `word` and `number` on a line of their own. */
static void say_line(const char *word, u32 number) {
    say(word);
    put(' ');
    say_number(number);
    end_line();
}

static int same(const char *left, const char *right) {
    while (*left && *left == *right) left++, right++;
    return *left == *right;
}

/* Cuts the first word off `line`; what follows it is the answer. */
static char *cut_word(char *line) {
    while (*line && *line != ' ') line++;
    if (*line) *line++ = 0;
    while (*line == ' ') line++;
    return line;
}

/* The decimal number at `*text`, which moves past it; 0 where there is none. */
static u32 take_number(const char **text) {
    u32 number = 0;
    while (**text >= '0' && **text <= '9') number = number * 10 + (u32)(*(*text)++ - '0');
    while (**text == ' ') (*text)++;
    return number;
}

/* --- content --- */

static u32 mixed(u32 number) {
    number ^= number >> 16;
    number *= 0x85ebca6b;
    number ^= number >> 13;
    number *= 0xc2b2ae35;
    return number ^ number >> 16;
}

static u32 content_of_seed(u32 seed) {
    return mixed(seed + 0x9e3779b9) | 2;
}

static struct words words_of(u32 content, u32 page) {
    struct words words = {0, 0};
    if (content != ZEROES) {
        words.first = mixed(content ^ mixed(page));
        words.step = mixed(words.first) | 1;
    }
    return words;
}

static u32 *page_at(u32 page) {
    return memory.words + (unsigned long)page * PAGE_WORDS;
}

static void write_page(u32 page, u32 content) {
    struct words words = words_of(content, page);
    u32 *into = page_at(page);
    u32 word = words.first;
#pragma GCC unroll 16
    for (u32 at = 0; at < PAGE_WORDS; at++, word += words.step) into[at] = word;
    memory.content[page] = content;
}

static int page_holds(u32 page, u32 content) {
    struct words words = words_of(content, page);
    const u32 *from = page_at(page);
    u32 word = words.first;
#pragma GCC unroll 16
    for (u32 at = 0; at < PAGE_WORDS; at++, word += words.step)
        if (from[at] != word) return 0;
    return 1;
}

static void fill(u32 seed) {
    u32 content = content_of_seed(seed);
    for (u32 page = 0; page < memory.pages; page++) write_page(page, content);
}

static struct verdict verify(void) {
    struct verdict verdict = {0, 0, 0};
    for (u32 page = 0; page < memory.pages; page++) {
        u32 content = memory.content[page];
        if (content == UNKNOWN) continue;
        verdict.verified++;
        if (!page_holds(page, content) && !verdict.wrong++) verdict.first_wrong = page;
    }
    return verdict;
}

/* Whether a page is of a share of `percent` that follows from `seed`. */
static int is_of_share(u32 page, u32 seed, u32 percent) {
    return mixed(seed ^ mixed(page + 1)) % 100 < percent;
}

/* Writes a share of the pages: of eight one with zeroes, one with what it holds already. The pages written. */
static u32 dirty(u32 seed, u32 percent) {
    u32 content = content_of_seed(seed);
    u32 dirtied = 0;
    for (u32 page = 0; page < memory.pages; page++) {
        if (!is_of_share(page, seed, percent)) continue;
        u32 kind = mixed(content ^ page) % 8;
        if (kind == 0) write_page(page, ZEROES);
        else if (kind == 1 && memory.content[page] != UNKNOWN) write_page(page, memory.content[page]);
        else write_page(page, content);
        dirtied++;
    }
    return dirtied;
}

/* Reads one word of each page of a share. The pages read. */
static u32 touch(u32 percent) {
    u32 touched = 0;
    for (u32 page = 0; page < memory.pages; page++) {
        if (!is_of_share(page, 0, percent)) continue;
        (void)*(volatile u32 *)page_at(page);
        touched++;
    }
    return touched;
}

/* --- commands --- */

static void tick(void) {
    say_line("tick", ++ticks);
}

/* Once an idle turn: ticks, when that is due. */
static void idle_turn(void) {
    if (counting && turns++ >= turns_between_ticks) {
        turns = 0;
        tick();
    }
}

static void say_verdict(struct verdict verdict) {
    say("verified ");
    say_number(verdict.verified);
    put(' ');
    say_number(verdict.wrong);
    if (verdict.wrong) {
        say(" first ");
        say_number(verdict.first_wrong);
    }
    end_line();
}

/* `count on`, `count off`, `count every TURNS`: a turn is about 10 ms of idleness. */
static void count(const char *how) {
    const char *every = "every ";
    counting = !same(how, "off");
    turns = 0;
    turns_between_ticks = 5;
    while (*every && *how == *every) how++, every++;
    if (!*every) turns_between_ticks = take_number(&how);
    say(counting ? "counting" : "not counting");
    end_line();
}

/* Answers one line with one line. */
static void answer(char *line) {
    char *own = cut_word(line);
    const char *rest = own;
    if (answer_own(line, own)) return;
    if (same(line, "verify")) say_verdict(verify());
    else if (same(line, "dirty")) {
        u32 seed = take_number(&rest);
        say_line("dirtied", dirty(seed, take_number(&rest)));
    } else if (same(line, "touch")) say_line("touched", touch(take_number(&rest)));
    else if (same(line, "tick")) tick();
    else if (same(line, "count")) count(rest);
    else if (same(line, "echo")) say("echo "), say(rest), end_line();
    else say("error: unknown command "), say(line), end_line();
}

/* Takes in one character of input; answers when it ends a line. */
static void take_in(char character) {
    static char line[LINE_BYTES];
    static u32 length;
    if (character == '\r' || character == '\n') {
        line[length] = 0;
        if (length) answer(line);
        length = 0;
    } else if (length < LINE_BYTES - 1) line[length++] = character;
}
