/*
 * A guest of a few KB without an operating system: 32-bit, one processor, the console on COM1.
 *
 * Begins as PVH's direct entry does, with what that or Linux's boot protocol tells of the memory in EBX: see entry.S. It
 * takes the memory behind its own image up to the end of that stretch: first the word a page, then the pages. It sleeps
 * until the console or, while it counts, the timer wakes it. A VMM without timer and interrupt controller may return from
 * any halt as it likes.
 */

#include "guest.h"

__asm__(
    ".section .start, \"ax\"\n"
    ".global start\n"
    "start:\n"
    "    cli\n"
    "    cld\n"
    "    xorl %eax, %eax\n"
    "    movl $image_bss, %edi\n"
    "    movl $image_end, %ecx\n"
    "    subl %edi, %ecx\n"
    "    rep stosb\n"
    "    movl $stack_top, %esp\n"
    "    lgdt segments_pointer\n"
    "    ljmp $8, $1f\n"
    "1:  movl $16, %eax\n"
    "    movl %eax, %ds\n"
    "    movl %eax, %es\n"
    "    movl %eax, %fs\n"
    "    movl %eax, %gs\n"
    "    movl %eax, %ss\n"
    "    pushl %ebx\n"
    "    call run\n"
    /*
     * Interrupts are on in here and nowhere else, so one finds the stack as it is at the `ret`: the handler forgets
     * where it came from and returns in its place. KVM on a host that emulates it has no `iret` for protected mode.
     */
    "halt:\n"
    "    sti\n"
    "    hlt\n"
    "    cli\n"
    "    ret\n"
    "interrupted:\n"
    "    addl $12, %esp\n"
    "    movb $0x20, %al\n"
    "    outb %al, $0x20\n"
    "    ret\n"
    ".data\n"
    ".balign 8\n"
    "segments:\n"
    "    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff\n"
    "segments_pointer:\n"
    "    .word 23\n"
    "    .long segments\n"
    ".bss\n"
    ".balign 16\n"
    "    .skip 2048\n"
    "stack_top:\n"
    ".text\n");

enum { PVH_MAGIC = 0x336ec578, USABLE = 1, MEMORY_END_MAX = 0xc0000000 };

/* Where Linux's zero page has the map of memory (Documentation/arch/x86/zero-page.rst). */
enum { ZERO_PAGE_MAP_ENTRIES = 0x1e8, ZERO_PAGE_MAP = 0x2d0 };

struct zero_page_stretch {
    u64 start, bytes;
    u32 kind;
} __attribute__((packed));

struct pvh_info {
    u32 magic, version, flags, modules;
    u64 module_list, command_line, acpi_root, map;
    u32 map_entries;
};

struct pvh_stretch {
    u64 start, bytes;
    u32 kind, reserved;
};

extern u8 image_start[], image_end[], interrupted[];
void halt(void);

/* --- ports --- */

enum { COM1 = 0x3f8, CONTROLLER = 0x20, CONTROLLER_MASK = 0x21, TIMER = 0x40 };
enum { LINE_STATUS = COM1 + 5, CAN_READ = 1, CAN_WRITE = 0x20 };
enum { LOCAL_SPURIOUS = 0xfee000f0, LOCAL_LINT0 = 0xfee00350, LOCAL_ON = 0x1ff, FROM_CONTROLLER = 0x700 };
enum { CONSOLE_ONLY = 0xef, CONSOLE_AND_TIMER = 0xee, TIMER_DIVISOR = 11932 };

static void put(char character) {
    while (!(in(LINE_STATUS) & CAN_WRITE)) {}
    out(COM1, (u8)character);
}

static void start_console(void) {
    out(COM1 + 1, 0);
    out(COM1 + 3, 0x80);
    out(COM1, 1); /* 115200 baud */
    out(COM1 + 1, 0);
    out(COM1 + 3, 3);
    out(COM1 + 2, 7);
    out(COM1 + 4, 0xb);
    out(COM1 + 1, 1);
}

/* --- interrupts, which only end a halt --- */

static struct gate {
    u32 low, high;
} gates[48];

static void start_interrupts(void) {
    struct {
        unsigned short limit;
        u32 base;
    } __attribute__((packed)) pointer = {sizeof gates - 1, (u32)gates};
    u32 handler = (u32)interrupted;
    for (u32 vector = 32; vector < 48; vector++) {
        gates[vector].low = 8 << 16 | (handler & 0xffff);
        gates[vector].high = (handler & 0xffff0000) | 0x8e00;
    }
    __asm__ volatile("lidt %0" : : "m"(pointer));
    out(CONTROLLER, 0x11);
    out(CONTROLLER_MASK, 32);
    out(CONTROLLER_MASK, 4);
    out(CONTROLLER_MASK, 1);
    out(CONTROLLER_MASK, CONSOLE_ONLY);
    out(CONTROLLER_MASK + 0x80, 0xff);
    *(volatile u32 *)LOCAL_SPURIOUS = LOCAL_ON;
    *(volatile u32 *)LOCAL_LINT0 = FROM_CONTROLLER;
    out(TIMER + 3, 0x34); /* every 10 ms */
    out(TIMER, TIMER_DIVISOR & 0xff);
    out(TIMER, TIMER_DIVISOR >> 8);
}

/* Halts until something happens. Input that came before is not slept over: interrupts are off until the halt. */
static void sleep_a_turn(void) {
    if (!(in(LINE_STATUS) & CAN_READ)) halt();
}

/* --- memory --- */

/* The end of the stretch from `start` that holds this image, as far as 32 bits are used; 0 where it does not. */
static u32 end_of_stretch(u64 start, u64 bytes, u32 kind) {
    u64 end = start + bytes;
    if (kind != USABLE || start > (u32)image_start || end < (u32)image_end) return 0;
    return end < MEMORY_END_MAX ? (u32)end : MEMORY_END_MAX;
}

static u32 end_by_zero_page(const u8 *page) {
    const struct zero_page_stretch *stretch = (const void *)(page + ZERO_PAGE_MAP);
    for (u32 entry = 0; entry < page[ZERO_PAGE_MAP_ENTRIES]; entry++, stretch++) {
        u32 end = end_of_stretch(stretch->start, stretch->bytes, stretch->kind);
        if (end) return end;
    }
    return 0;
}

static u32 end_by_pvh(const struct pvh_info *info) {
    const struct pvh_stretch *stretch = (const void *)(u32)info->map;
    for (u32 entry = 0; entry < info->map_entries; entry++, stretch++) {
        u32 end = end_of_stretch(stretch->start, stretch->bytes, stretch->kind);
        if (end) return end;
    }
    return 0;
}

/* Divides what is behind the image into the word a page and the pages. */
static void take_memory(u32 end) {
    u32 start = ((u32)image_end + PAGE_BYTES - 1) / PAGE_BYTES;
    u32 both = end / PAGE_BYTES > start ? end / PAGE_BYTES - start : 0;
    u32 table = (both + PAGE_WORDS) / (PAGE_WORDS + 1);
    memory.content = (u32 *)(start * PAGE_BYTES);
    memory.words = (u32 *)((start + table) * PAGE_BYTES);
    memory.pages = both - table;
    for (u32 page = 0; page < memory.pages; page++) memory.content[page] = UNKNOWN;
}

static int answer_own(const char *command, char *rest) {
    if (!same(command, "fill")) return 0;
    const char *seed = rest;
    fill(take_number(&seed));
    say_line("filled", memory.pages);
    return 1;
}

__attribute__((noreturn, used)) void run(const struct pvh_info *info) {
    start_console();
    start_interrupts();
    take_memory(info->magic == PVH_MAGIC ? end_by_pvh(info) : end_by_zero_page((const u8 *)info));
    say("rekindle tiny guest, ");
    say_number(memory.pages);
    say(" pages");
    end_line();
    for (;;) {
        while (in(LINE_STATUS) & CAN_READ) take_in((char)in(COM1));
        out(CONTROLLER_MASK, counting ? CONSOLE_AND_TIMER : CONSOLE_ONLY);
        idle_turn();
        if (!counting || turns_between_ticks) sleep_a_turn();
    }
}
