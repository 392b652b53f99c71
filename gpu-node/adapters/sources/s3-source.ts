/** Adapters in S3, R2 or another store with S3's API: `bucket/prefix`, the prefix exactly. */

import type { S3Client } from '@aws-sdk/client-s3'
import type { AdapterRef } from '../../../shared/adapter-ref.ts'
import { RingletError } from '../../../shared/errors.ts'
import { CONFIG_FILE, WEIGHT_FILES } from '../weight-file.ts'
import {
  type AdapterSourceReader,
  chooseFiles,
  notFound,
  type ResolvedAdapter,
  type SourceAccess,
  type SourceFile,
  unreachable,
} from './adapter-source.ts'
import { HomeReplyError, isTransient } from './http-home.ts'

export interface S3Config {
  /** Buckets that requests may name; `'*'` is every bucket that the credentials reach. */
  allowedBuckets: readonly string[] | '*'
  endpointUrl?: string
  /** Cloudflare R2: its endpoint is made from the account. */
  r2AccountId?: string
  region?: string
}

export interface S3Home {
  /** Finds the adapter below `prefix` of `bucket`, for a ref of any source. Whether the bucket may be named is the caller's to know. */
  resolve(ref: AdapterRef, bucket: string, prefix: string, access: SourceAccess): Promise<ResolvedAdapter>
  close(): void
}

const BUCKET = /^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/

export function createS3Source(config: S3Config, home: S3Home): AdapterSourceReader {
  return {
    isExact: () => false,
    resolve: async (ref, access) => {
      const { bucket, prefix } = parseS3Id(ref.id)
      if (config.allowedBuckets !== '*' && !config.allowedBuckets.includes(bucket)) {
        throw new RingletError('scope_denied', `bucket '${bucket}' is not one that this node may read`, {
          param: 'adapter_id',
        })
      }
      return home.resolve(ref, bucket, prefix, access)
    },
  }
}

/** `bucket/prefix`; a trailing slash says nothing more. */
export function parseS3Id(id: string): { bucket: string; prefix: string } {
  const slash = id.indexOf('/')
  const bucket = id.slice(0, Math.max(slash, 0))
  const prefix = id.slice(slash + 1).replace(/\/+$/, '')
  if (!BUCKET.test(bucket) || prefix === '') {
    throw new RingletError('field_invalid', 'an adapter in S3 is named "s3://bucket/prefix" or "bucket/prefix"', {
      param: 'adapter_id',
    })
  }
  return { bucket, prefix }
}

/** Where the store is: R2's address is made from the account; without any setting it is AWS's own. */
export function s3Address({ endpointUrl, r2AccountId, region }: Omit<S3Config, 'allowedBuckets'>): {
  endpoint: string | undefined
  region: string
} {
  const r2 = r2AccountId === undefined ? undefined : `https://${r2AccountId}.r2.cloudflarestorage.com`
  return { endpoint: r2 ?? endpointUrl, region: region ?? (r2 === undefined ? 'us-east-1' : 'auto') }
}

type Sdk = typeof import('@aws-sdk/client-s3')

interface OpenS3 {
  sdk: Sdk
  client: S3Client
}

/** Credentials come by the SDK's standard chain. The SDK takes a tenth of a second and 13 MB: only where S3 is used. */
export function createS3Home(config: Omit<S3Config, 'allowedBuckets'>): S3Home {
  const { endpoint, region } = s3Address(config)
  const connect = async (): Promise<OpenS3> => {
    const sdk = await import('@aws-sdk/client-s3')
    const client = new sdk.S3Client({
      region,
      maxAttempts: 3,
      // Other stores serve buckets as paths; as host names only where their DNS does.
      ...(endpoint === undefined ? {} : { endpoint, forcePathStyle: true }),
    })
    return { sdk, client }
  }
  let opened: Promise<OpenS3> | undefined
  return {
    resolve: async (ref, bucket, prefix, access) => {
      opened ??= connect()
      return resolve(await opened, ref, { bucket, prefix, endpoint: endpoint ?? region }, access)
    },
    close: () => void opened?.then(({ client }) => client.destroy()),
  }
}

async function resolve(
  s3: OpenS3,
  ref: AdapterRef,
  place: { bucket: string; prefix: string; endpoint: string },
  access: SourceAccess,
): Promise<ResolvedAdapter> {
  const names = [CONFIG_FILE, ...WEIGHT_FILES]
  const heads = await Promise.all(names.map((name) => head(s3, ref, place, name, access)))
  const found = heads.filter((file) => file !== undefined)
  if (found.length === 0) {
    throw notFound(ref)
  }
  const chosen = chooseFiles(ref, found)
  return {
    ref,
    contentKey: JSON.stringify([
      's3',
      place.endpoint,
      place.bucket,
      chosen.map((file) => [file.key, file.etag, file.version]),
    ]),
    files: chosen,
  }
}

interface S3File extends SourceFile {
  key: string
  etag: string
  version: string | undefined
}

/** `undefined`: no such object. Without the right to list a bucket, S3 answers 403 for objects that do not exist. */
async function head(
  s3: OpenS3,
  ref: AdapterRef,
  { bucket, prefix }: { bucket: string; prefix: string },
  name: string,
  access: SourceAccess,
): Promise<S3File | undefined> {
  const key = `${prefix}/${name}`
  try {
    const command = new s3.sdk.HeadObjectCommand({ Bucket: bucket, Key: key })
    const reply = await s3.client.send(command, { abortSignal: access.signal })
    const etag = reply.ETag ?? ''
    const version = reply.VersionId
    return {
      name,
      key,
      etag,
      version,
      bytes: reply.ContentLength ?? 0,
      checks: md5Of(etag, reply.ServerSideEncryption),
      read: (start, end, signal) => read(s3, { bucket, key, etag, version }, { start, end }, signal),
    }
  } catch (error) {
    access.signal.throwIfAborted()
    const status = error instanceof s3.sdk.S3ServiceException ? (error.$metadata.httpStatusCode ?? 0) : 0
    if (status >= 400 && !isTransient(status)) {
      return undefined
    }
    throw unreachable(ref, status === 0 ? 'no usable answer' : `it answered ${status}`, error)
  }
}

/** An ETag of 32 hex digits is the MD5 of an object put in one piece and not encrypted with a key of its own. */
function md5Of(etag: string, encryption: string | undefined): SourceFile['checks'] {
  const md5 = /^"?([0-9a-f]{32})"?$/.exec(etag)?.[1]
  return md5 === undefined || (encryption !== undefined && encryption !== 'AES256') ? {} : { md5 }
}

/** `IfMatch` and `VersionId` keep parts of different versions from being put together. */
async function* read(
  { sdk, client }: OpenS3,
  place: { bucket: string; key: string; etag: string; version: string | undefined },
  { start, end }: { start: number; end: number },
  signal: AbortSignal,
): AsyncIterable<Uint8Array> {
  if (end <= start) {
    return
  }
  const reply = await client.send(
    new sdk.GetObjectCommand({
      Bucket: place.bucket,
      Key: place.key,
      Range: `bytes=${start}-${end - 1}`,
      ...(place.etag === '' ? {} : { IfMatch: place.etag }),
      ...(place.version === undefined ? {} : { VersionId: place.version }),
    }),
    { abortSignal: signal },
  )
  // A store that knows no ranges answers with the whole object.
  if (!(reply.ContentRange?.startsWith(`bytes ${start}-`) ?? start === 0)) {
    throw new HomeReplyError(200, `the store answered with ${reply.ContentRange ?? 'all'} to a range from ${start}`)
  }
  let left = end - start
  // The SDK's stream on Node is a Readable, whose chunks are Buffers.
  for await (const chunk of reply.Body as AsyncIterable<Uint8Array>) {
    left -= chunk.byteLength
    yield chunk
  }
  if (left !== 0) {
    throw new HomeReplyError(206, `the object's range was ${left} bytes short`)
  }
}
