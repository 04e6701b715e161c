/*
 * The tiny guest as a 64-bit ELF file: its 32-bit image, and the two ways into it.
 *
 * PVH's direct entry begins in the image at once; QEMU and Firecracker from 1.12 on find it by the note. An older
 * Firecracker begins at the file's entry by Linux's 64-bit boot protocol: in long mode, with memory mapped to itself and
 * the zero page in RSI. From there long mode is left, and the image begins with the zero page in EBX.
 */

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18 /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad image

    .text
    .code64
    .global long_start
long_start:
    cli
    lgdt segments_pointer(%rip)
    ljmpl *narrow(%rip)
    .code32
narrow_start:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %cr0, %eax
    andl $0x7fffffff, %eax /* without paging (CR0.PG) */
    movl %eax, %cr0
    movl $0xc0000080, %ecx /* EFER */
    rdmsr
    andl $~0x100, %eax /* without long mode (EFER.LME) */
    wrmsr
    movl %esi, %ebx
    jmp image

    .balign 8
segments:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
segments_pointer:
    .word 23
    .quad segments
narrow:
    .long narrow_start
    .word 8

    .section .image, "awx"
image:
    .incbin IMAGE
