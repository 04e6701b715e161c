/*
 * The first and only process of a Linux guest: no library, raw system calls.
 *
 * It loads the modules that the file /modules names, in that order, mounts /dev/vda at /disk if there is one, and then
 * answers lines on the kernel's console as the tiny guest does, with a few commands of its own. Bytes that come
 * over its channel go back there as they are.
 */

#include "guest.h"

typedef unsigned long word;

enum {
    SYS_READ = 0,
    SYS_WRITE = 1,
    SYS_OPEN = 2,
    SYS_CLOSE = 3,
    SYS_POLL = 7,
    SYS_MMAP = 9,
    SYS_MUNMAP = 11,
    SYS_IOCTL = 16,
    SYS_NANOSLEEP = 35,
    SYS_FSYNC = 74,
    SYS_SYSINFO = 99,
    SYS_SYSLOG = 103,
    SYS_SYNC = 162,
    SYS_SETTIMEOFDAY = 164,
    SYS_MOUNT = 165,
    SYS_UMOUNT = 166,
    SYS_REBOOT = 169,
    SYS_IOPL = 172,
    SYS_FADVISE = 221,
    SYS_CLOCK_GETTIME = 228,
    SYS_FINIT_MODULE = 313,
    SYS_GETRANDOM = 318,
};

enum { READ_ONLY = 0, WRITE_ONLY = 1, READ_WRITE = 2, CREATE = 0100, EMPTY = 01000 };

static int console = -1;
static word mapped_bytes;

static long call(long number, word a, word b, word c, word d, word e) {
    long result;
    register word fourth __asm__("r10") = d;
    register word fifth __asm__("r8") = e;
    register word sixth __asm__("r9") = 0;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
                     : "rcx", "r11", "memory");
    return result;
}

static int open_file(const char *path, int flags) {
    return (int)call(SYS_OPEN, (word)path, flags, 0644, 0, 0);
}

static long read_file(int file, void *into, word bytes) {
    return call(SYS_READ, file, (word)into, bytes, 0, 0);
}

/* Writes all of it; what is not 0 is the error. */
static long write_file(int file, const void *from, word bytes) {
    const u8 *at = from;
    while (bytes) {
        long written = call(SYS_WRITE, file, (word)at, bytes, 0, 0);
        if (written < 0) return written;
        at += written;
        bytes -= written;
    }
    return 0;
}

static void close_file(int file) {
    call(SYS_CLOSE, file, 0, 0, 0, 0);
}

/* --- console --- */

/* A line is written at once, lest the kernel's own words get into it. */
static void put(char character) {
    static char line[LINE_BYTES * 2];
    static word length;
    line[length++] = character;
    if (character == '\n' || length == sizeof line) {
        write_file(console, line, length);
        length = 0;
    }
}

/* Lines come and go as they are: no echo, no editing, no signals. */
static void start_console(void) {
    struct {
        u32 input, output, control, local;
        u8 discipline, characters[19];
    } settings;
    enum { TCGETS = 0x5401, TCSETS = 0x5402, AT_LEAST = 6, WITHIN = 5 };
    console = open_file("/dev/console", READ_WRITE);
    call(SYS_IOCTL, console, TCGETS, (word)&settings, 0, 0);
    settings.input = settings.output = settings.local = 0;
    settings.characters[AT_LEAST] = 1;
    settings.characters[WITHIN] = 0;
    call(SYS_IOCTL, console, TCSETS, (word)&settings, 0, 0);
}

static void say_long(u64 number) {
    if (number >= 1000000000) {
        u32 low = number % 1000000000;
        say_long(number / 1000000000);
        for (u32 unit = 100000000; unit > low && unit > 1; unit /= 10) put('0');
        say_number(low);
    } else say_number((u32)number);
}

/* Answers with what the system said to `name`. */
static void say_error(const char *name, long error) {
    say("error: ");
    say(name);
    say_line(": error", (u32)-error);
}

/* --- memory --- */

struct system {
    long uptime;
    word loads[3], total, free, shared, buffers, total_on_disk, free_on_disk;
    unsigned short processes, padding;
    word high, free_high;
    u32 unit;
    u8 rest[64];
};

static word free_bytes(void) {
    struct system system;
    call(SYS_SYSINFO, (word)&system, 0, 0, 0, 0);
    return system.free * system.unit;
}

/* Maps memory of so many MiB in place of what was mapped; half of what is free where it is 0. */
static int map_memory(word mib) {
    enum { READ_WRITE_PAGES = 3, PRIVATE_ANONYMOUS = 0x22, LEFT_FREE = 8 << 20 };
    if (mapped_bytes) call(SYS_MUNMAP, (word)memory.content, mapped_bytes, 0, 0, 0);
    mapped_bytes = memory.pages = 0;
    if (!mib) mib = free_bytes() >> 21;
    word table = (mib << 20) / PAGE_WORDS;
    word bytes = table + (mib << 20);
    if (!mib || bytes + LEFT_FREE > free_bytes()) return 0;
    long start = call(SYS_MMAP, 0, bytes, READ_WRITE_PAGES, PRIVATE_ANONYMOUS, -1);
    if (start < 0 && start > -4096) return 0;
    mapped_bytes = bytes;
    memory.content = (u32 *)start;
    memory.words = (u32 *)(start + table);
    memory.pages = (u32)(mib << 8);
    return 1;
}

static void answer_fill(const char *rest) {
    u32 seed = take_number(&rest);
    word mib = take_number(&rest);
    if (mib && mib << 8 == memory.pages) {}
    else if (!map_memory(mib)) {
        say("error: no memory for that\r\n");
        return;
    }
    fill(seed);
    say_line("filled", memory.pages);
}

/* --- disk --- */

/* The path of the file that the first word of `*rest` names, which moves past it. */
static const char *take_path(char **rest) {
    static char path[LINE_BYTES + 8] = "/disk/";
    char *name = *rest, *into = path + 6;
    *rest = cut_word(name);
    while ((*into++ = *name++)) {}
    return path;
}

static long text_length(const char *text) {
    const char *end = text;
    while (*end) end++;
    return end - text;
}

/* `write NAME TEXT`: on the disk when it is answered. */
static void write_text(char *rest) {
    const char *path = take_path(&rest);
    long bytes = text_length(rest);
    int file = open_file(path, WRITE_ONLY | CREATE | EMPTY);
    long error = file < 0 ? file : write_file(file, rest, bytes);
    if (!error) error = call(SYS_FSYNC, file, 0, 0, 0, 0);
    if (file >= 0) close_file(file);
    if (error) say_error(path, error);
    else say_line("written", (u32)bytes);
}

/* `read NAME`. */
static void read_text(char *rest) {
    char text[LINE_BYTES];
    const char *path = take_path(&rest);
    int file = open_file(path, READ_ONLY);
    long bytes = file < 0 ? file : read_file(file, text, sizeof text);
    if (file >= 0) close_file(file);
    if (bytes < 0) {
        say_error(path, bytes);
        return;
    }
    say("read ");
    for (long at = 0; at < bytes; at++) put(text[at] < ' ' ? '?' : text[at]);
    end_line();
}

/* One page with the words that a page of this number and seed has, or has to have. */
static u32 page[PAGE_WORDS];

static void make_page(u32 content, u32 number) {
    struct words words = words_of(content, number);
    for (u32 at = 0; at < PAGE_WORDS; at++, words.first += words.step) page[at] = words.first;
}

/* `store NAME SEED MIB`: a file of pages that follow from the seed. */
static void store(char *rest) {
    const char *path = take_path(&rest), *numbers = rest;
    u32 content = content_of_seed(take_number(&numbers));
    u32 pages = take_number(&numbers) << 8;
    int file = open_file(path, WRITE_ONLY | CREATE | EMPTY);
    long error = file < 0 ? file : 0;
    for (u32 at = 0; at < pages && !error; at++) {
        make_page(content, at);
        error = write_file(file, page, sizeof page);
    }
    if (!error) error = call(SYS_FSYNC, file, 0, 0, 0, 0);
    if (file >= 0) close_file(file);
    if (error) say_error(path, error);
    else say_line("stored", pages);
}

/* `check NAME SEED`: reads such a file from the disk. */
static void check(char *rest) {
    enum { NOT_NEEDED = 4 };
    static u32 found[PAGE_WORDS];
    const char *path = take_path(&rest), *numbers = rest;
    u32 content = content_of_seed(take_number(&numbers)), pages = 0, wrong = 0;
    int file = open_file(path, READ_ONLY);
    long bytes = file < 0 ? file : call(SYS_FADVISE, file, 0, 0, NOT_NEEDED, 0);
    while (bytes >= 0 && (bytes = read_file(file, found, sizeof found)) > 0) {
        u32 different = bytes != sizeof found;
        make_page(content, pages++);
        for (u32 at = 0; at < PAGE_WORDS; at++) different |= page[at] ^ found[at];
        wrong += !!different;
    }
    if (file >= 0) close_file(file);
    if (bytes < 0) {
        say_error(path, bytes);
        return;
    }
    say("checked ");
    say_number(pages);
    put(' ');
    say_number(wrong);
    end_line();
}

/* `forget`: what the kernel keeps of the disk in memory is read anew from now on. */
static void forget(void) {
    int file = open_file("/proc/sys/vm/drop_caches", WRITE_ONLY);
    call(SYS_SYNC, 0, 0, 0, 0, 0);
    long error = file < 0 ? file : write_file(file, "3", 1);
    if (file >= 0) close_file(file);
    if (error) say_error("forget", error);
    else say("forgot\r\n");
}

/* --- network --- */

#include "network.h"

/* --- channel --- */

static int channel = -1;

/* `channel`: opens the first port that is no console, which is there some time after its module; what comes over it is
 * sent back from then on. */
static void open_channel(void) {
    enum { TRIES = 1000, DIGIT = 10 };
    /* The digit is the number of its device among those of virtio. */
    char path[] = "/dev/vport0p1";
    struct {
        long seconds, nanoseconds;
    } a_while = {0, 10000000};
    for (int tries = 0; channel < 0 && tries < TRIES; tries++) {
        if (tries) call(SYS_NANOSLEEP, (word)&a_while, 0, 0, 0, 0);
        for (path[DIGIT] = '0'; channel < 0 && path[DIGIT] <= '9'; path[DIGIT]++) channel = open_file(path, READ_WRITE);
    }
    if (channel < 0) say_error("channel", channel);
    else say("channel open\r\n");
}

static void echo_channel(void) {
    static u8 bytes[PAGE_BYTES];
    long count = read_file(channel, bytes, sizeof bytes);
    if (count > 0) write_file(channel, bytes, count);
}

/* --- commands --- */

static void say_clock(long clock) {
    struct {
        long seconds, nanoseconds;
    } now;
    call(SYS_CLOCK_GETTIME, clock, (word)&now, 0, 0, 0);
    u32 milliseconds = (u32)(now.nanoseconds / 1000000);
    say_long((u64)now.seconds);
    put('.');
    for (u32 unit = 100; unit > milliseconds && unit > 1; unit /= 10) put('0');
    say_number(milliseconds);
}

/* `time`: what the clock shows, and for how long this kernel has run. */
static void say_time(void) {
    enum { OF_DAY = 0, SINCE_START = 1 };
    say("time ");
    say_clock(OF_DAY);
    say(" up ");
    say_clock(SINCE_START);
    end_line();
}

/* A number of the hardware clock, which has two decimal digits in a byte. */
static u32 of_hardware_clock(u8 place) {
    enum { PLACE = 0x70, VALUE = 0x71 };
    out(PLACE, place);
    u8 digits = in(VALUE);
    return (digits >> 4) * 10 + (digits & 15);
}

/* Seconds since 1970 by the hardware clock. */
static u64 hardware_time(void) {
    enum { SECOND = 0, MINUTE = 2, HOUR = 4, DAY = 7, MONTH = 8, YEAR = 9, CENTURY = 0x32 };
    u32 second = of_hardware_clock(SECOND), minute = of_hardware_clock(MINUTE), hour = of_hardware_clock(HOUR);
    u32 day = of_hardware_clock(DAY), month = of_hardware_clock(MONTH);
    u32 year = of_hardware_clock(CENTURY) * 100 + of_hardware_clock(YEAR);
    /* Years begin in March: what is leapt comes last. */
    if (month < 3) month += 12, year--;
    u64 days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * (month - 3) + 2) / 5 + day - 719469;
    return ((days * 24 + hour) * 60 + minute) * 60 + second;
}

/* `clock`: sets the kernel's clock by the hardware clock, as a guest has to after a resume. */
static void set_clock(void) {
    enum { ALL_PORTS = 3 };
    struct {
        long seconds, microseconds;
    } now;
    long error = call(SYS_IOPL, ALL_PORTS, 0, 0, 0, 0);
    /* Twice the same: it was not read in the middle of a step. */
    do now.seconds = (long)hardware_time();
    while (!error && now.seconds != (long)hardware_time());
    now.microseconds = 0;
    if (!error) error = call(SYS_SETTIMEOFDAY, (word)&now, 0, 0, 0, 0);
    if (error) say_error("clock", error);
    else say("clock ok\r\n");
}

/* `random`: 16 bytes of the kernel's, by which clones can be told apart. */
static void say_random(void) {
    u8 bytes[16];
    call(SYS_GETRANDOM, (word)bytes, sizeof bytes, 0, 0, 0);
    say("random ");
    for (u32 at = 0; at < sizeof bytes; at++) {
        put("0123456789abcdef"[bytes[at] >> 4]);
        put("0123456789abcdef"[bytes[at] & 15]);
    }
    end_line();
}

/* `end`: the disk is unmounted and the machine reset. */
static void end(void) {
    say("ending\r\n");
    call(SYS_SYNC, 0, 0, 0, 0, 0);
    call(SYS_UMOUNT, (word)"/disk", 0, 0, 0, 0);
    call(SYS_REBOOT, 0xfee1dead, 0x28121969, 0x01234567, 0, 0);
}

static int answer_own(const char *command, char *rest) {
    if (same(command, "fill")) answer_fill(rest);
    else if (same(command, "write")) write_text(rest);
    else if (same(command, "read")) read_text(rest);
    else if (same(command, "store")) store(rest);
    else if (same(command, "check")) check(rest);
    else if (same(command, "forget")) forget();
    else if (same(command, "sync")) call(SYS_SYNC, 0, 0, 0, 0, 0), say("synced\r\n");
    else if (same(command, "time")) say_time();
    else if (same(command, "clock")) set_clock();
    else if (same(command, "network")) set_up_network(rest);
    else if (same(command, "send")) send_text(rest);
    else if (same(command, "random")) say_random();
    else if (same(command, "channel")) open_channel();
    else if (same(command, "end")) end();
    else return 0;
    return 1;
}

/* --- start --- */

static void load_module(const char *path) {
    int file = open_file(path, READ_ONLY);
    long error = file < 0 ? file : call(SYS_FINIT_MODULE, file, (word)"", 0, 0, 0);
    if (file >= 0) close_file(file);
    if (error) say_error(path, error);
}

/* Loads what /modules names, one path a line. */
static void load_modules(void) {
    static char list[4096];
    int file = open_file("/modules", READ_ONLY);
    long bytes = file < 0 ? 0 : read_file(file, list, sizeof list - 1);
    char *path = list;
    for (long at = 0; at < bytes; at++) {
        if (list[at] != '\n') continue;
        list[at] = 0;
        load_module(path);
        path = list + at + 1;
    }
    if (file >= 0) close_file(file);
}

static long mount(const char *what, const char *where, const char *kind) {
    return call(SYS_MOUNT, (word)what, (word)where, (word)kind, 0, 0);
}

static int mount_disk(void) {
    return !mount("/dev/vda", "/disk", "ext4") || !mount("/dev/vda", "/disk", "ext2");
}

/* Takes input for the 10 ms that an idle turn has, or waits for it for ever where nothing counts. A channel that is not
 * open is skipped. */
static void take_input(void) {
    enum { READABLE = 1 };
    struct {
        int file;
        short wanted, found;
    } polls[2] = {{console, READABLE, 0}, {channel, READABLE, 0}};
    int milliseconds = counting ? (turns_between_ticks ? 10 : 0) : -1;
    call(SYS_POLL, (word)polls, 2, (word)milliseconds, 0, 0);
    if (polls[0].found) {
        char input[64];
        long bytes = read_file(console, input, sizeof input);
        for (long at = 0; at < bytes; at++) take_in(input[at]);
    }
    if (polls[1].found & READABLE) echo_channel();
}

__attribute__((noreturn, used)) void run(void) {
    enum { CONSOLE_LEVEL = 8, ONLY_PANICS = 1 };
    mount("dev", "/dev", "devtmpfs");
    mount("proc", "/proc", "proc");
    start_console();
    load_modules();
    int disk = mount_disk();
    call(SYS_SYSLOG, CONSOLE_LEVEL, 0, ONLY_PANICS, 0, 0);
    say("\r\nrekindle linux guest, ");
    say_number((u32)(free_bytes() / PAGE_BYTES));
    say(disk ? " pages, /dev/vda at /disk" : " pages, no disk");
    end_line();
    for (;;) {
        take_input();
        idle_turn();
    }
}

__asm__(
    ".global _start\n"
    "_start:\n"
    "    xorl %ebp, %ebp\n"
    "    andq $-16, %rsp\n"
    "    call run\n");
