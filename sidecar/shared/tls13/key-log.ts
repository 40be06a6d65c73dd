import koffi from 'koffi'

type Pointer = unknown

const Callback = koffi.proto('void EdgeMeshKeylog(void *ssl, const char *line)')
const setCallback = koffi
  .load(null)
  .func('SSL_CTX_set_keylog_callback', 'void', ['void *', koffi.pointer(Callback)])

/** Lines of the handshake that takes its turn now: OpenSSL tells its secrets in the form of a key log only. */
let told: string[] = []
const callback = koffi.register((_ssl: Pointer, line: string) => {
  told.push(line)
}, koffi.pointer(Callback))

/** Handshakes of this context tell their secrets. */
export function tellSecrets(ctx: Pointer): void {
  setCallback(ctx, callback)
}

/** What the two directions of a connection are protected with once its handshake is over. */
export interface Secrets {
  client: Uint8Array
  server: Uint8Array
}

/** The secrets that were told while `step` ran, a step of one handshake. */
export function listen<T>(step: () => T): [T, Partial<Secrets>] {
  told = []
  const result = step()
  const secrets: Partial<Secrets> = {}
  for (const line of told.splice(0)) {
    const [label, , secret = ''] = line.split(' ')
    if (label === 'CLIENT_TRAFFIC_SECRET_0') secrets.client = unhex(secret)
    if (label === 'SERVER_TRAFFIC_SECRET_0') secrets.server = unhex(secret)
  }
  return [result, secrets]
}

/** Not a view of a pool, all of which would be copied to another thread. */
function unhex(text: string): Uint8Array {
  return Uint8Array.from(Buffer.from(text, 'hex'))
}
