const textOpcode = 0x81 // FIN, and not masked: that is for clients

/**
 * A text message as a WebSocket server sends it (RFC 6455, 5.2), for messages that thousands get: it is encoded once, and
 * written to the stream of each. Without extensions `ws` writes its own frames at once, so the two keep their order.
 */
export function frameOf(text: string): Buffer {
  const length = Buffer.byteLength(text)
  const extra = length < 126 ? 0 : length < 65_536 ? 2 : 8
  const frame = Buffer.allocUnsafeSlow(2 + extra + length)
  frame[0] = textOpcode
  frame[1] = extra === 0 ? length : extra === 2 ? 126 : 127
  if (extra === 2) frame.writeUInt16BE(length, 2)
  if (extra === 8) frame.writeBigUInt64BE(BigInt(length), 2)
  frame.write(text, 2 + extra)
  return frame
}
