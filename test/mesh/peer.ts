// A tunnel client with a certificate of our choice, made with the lab's own CA (or another), for the security tests:
//   node peer.ts --ca FOLDER --uid UID --to IP --expect UID --authority IP:PORT [--domain D] [--life MS] [--none yes]
// Prints {"status": N} of its CONNECT, or {"refused": why}.
import { connect } from 'node:http2'
import { parseArgs } from 'node:util'
import { sentenceOf } from '#shared/errors.ts'
import { podServerName } from '#shared/identity.ts'
import { ports } from '#shared/ports.ts'
import { createKeyPair } from '#shared/tls.ts'
import { CertificateAuthority } from '../../sidecar/shared/authority/certificate-authority.ts'

const text = { type: 'string' } as const
const options = {
  ca: text,
  uid: text,
  to: text,
  expect: text,
  authority: text,
  domain: text,
  life: text,
  none: text,
  foreign: text,
}
const { values } = parseArgs({ options })

async function main(): Promise<object> {
  const {
    ca = '',
    uid: podUid = '',
    to,
    expect = '',
    authority = '',
    domain: trustDomain = 'cluster.local',
  } = values
  const certificates = await CertificateAuthority.open(ca, 'cluster.local')
  const keys = await createKeyPair()
  const identity = { trustDomain, namespace: 'default', serviceAccount: 'default', podUid }
  const { chain } = await certificates.issue(identity, keys.publicKey, Number(values.life ?? 60_000))
  const shown = values.none === undefined ? { cert: chain, key: keys.privateKey.reveal() } : {}
  const session = connect(`https://${to}:${ports.tunnel}`, {
    ...shown,
    servername: podServerName(expect, 'cluster.local'),
    // What is under test is whether the other side refuses us.
    rejectUnauthorized: false,
  })
  const { promise, resolve } = Promise.withResolvers<object>()
  setTimeout(() => resolve({ refused: 'no answer' }), 3_000)
  session.once('error', (error) => resolve({ refused: sentenceOf(error) }))
  session.once('close', () => resolve({ refused: 'closed' }))
  const stream = session.request({ ':method': 'CONNECT', ':authority': authority }, { endStream: false })
  stream.on('error', () => undefined) // the session says why
  stream.once('response', (headers) => resolve({ status: headers[':status'] }))
  return promise
}

console.log(JSON.stringify(await main()))
process.exit(0)
