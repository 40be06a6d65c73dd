/** A file, folder or symbolic link of an archive; everything is owned by root and dated 1970. */
export interface TarEntry {
  /** Without a leading slash. */
  path: string
  mode: number
  content?: Buffer
  /** Where a symbolic link points. */
  link?: string
}

const blockBytes = 512

/** A ustar archive (POSIX.1-1988) that is the same bytes for the same entries; paths are at most 100 bytes long. */
export function tar(entries: readonly TarEntry[]): Buffer {
  const parts = entries.flatMap((entry) => [header(entry), padded(entry.content ?? Buffer.alloc(0))])
  return Buffer.concat([...parts, Buffer.alloc(2 * blockBytes)])
}

function header({ path, mode, content, link }: TarEntry): Buffer {
  const block = Buffer.alloc(blockBytes)
  if (Buffer.byteLength(path) > 100)
    throw new RangeError(`Cannot archive ${path}: it is over 100 bytes long.`)
  block.write(path, 0)
  block.write(octal(mode, 8), 100)
  block.write(octal(0, 8), 108) // uid
  block.write(octal(0, 8), 116) // gid
  block.write(octal(content?.length ?? 0, 12), 124)
  block.write(octal(0, 12), 136) // mtime
  block.write(' '.repeat(8), 148) // the checksum counts itself as blanks
  block.write(link !== undefined ? '2' : content !== undefined ? '0' : '5', 156)
  block.write(link ?? '', 157)
  block.write('ustar\u000000', 257)
  const sum = block.reduce((total, byte) => total + byte, 0)
  block.write(`${octal(sum, 7)} `, 148)
  return block
}

function padded(content: Buffer): Buffer {
  const rest = content.length % blockBytes
  return rest === 0 ? content : Buffer.concat([content, Buffer.alloc(blockBytes - rest)])
}

/** As tar writes numbers: octal digits that fill the field but for the NUL at its end. */
function octal(value: number, width: number): string {
  return `${value.toString(8).padStart(width - 1, '0')}\0`
}
