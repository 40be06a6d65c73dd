import { expect, it } from 'vitest'
import { parseResolvConf } from '../../../sidecar/dns/resolv-conf.ts'

it.each([
  [
    'nameserver 10.96.0.10\nsearch a.b c.d\noptions ndots:5 edns0\n',
    { servers: ['10.96.0.10'], search: ['a.b', 'c.d'], ndots: 5 },
  ],
  ['', { servers: [], search: [], ndots: 1 }],
  ['# nameserver 1.1.1.1\n; x\nnameserver 1.1.1.1 # why\n', { servers: ['1.1.1.1'], search: [], ndots: 1 }],
  [
    'nameserver fe80::1%eth0\nnameserver nonsense\nnameserver ::1',
    { servers: ['fe80::1', '::1'], search: [], ndots: 1 },
  ],
  ['domain a.b\nsearch c.d\n', { servers: [], search: ['c.d'], ndots: 1 }],
  ['  nameserver\t10.0.0.1\r\noptions ndots:99', { servers: ['10.0.0.1'], search: [], ndots: 15 }],
  [
    Array.from({ length: 12 }, (_, i) => `nameserver 10.0.0.${i}`).join('\n'),
    { servers: Array.from({ length: 8 }, (_, i) => `10.0.0.${i}`), search: [], ndots: 1 },
  ],
])('reads resolv.conf %#', (text, conf) => {
  expect(parseResolvConf(text)).toEqual(conf)
})
