/** Whom to count an address as: whoever has one IPv6 address has a /64 of them. */
export function networkOf(address: string): string {
  const mapped = /^::ffff:([0-9.]+)$/i.exec(address)?.[1]
  if (mapped !== undefined || !address.includes(':')) return mapped ?? address
  const [head = '', tail] = address.split('::')
  const groups = (part: string) => (part === '' ? [] : part.split(':'))
  const filling = tail === undefined ? 0 : 8 - groups(head).length - groups(tail).length
  return [...groups(head), ...Array(Math.max(0, filling)).fill('0'), ...groups(tail ?? '')]
    .slice(0, 4)
    .join(':')
}
