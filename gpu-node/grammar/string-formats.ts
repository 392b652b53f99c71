/** `format` keywords that are enforced, as regular expressions over the string's content. */

const DATE = '\\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\\d|2[0-8])'
const TIME = '([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)'
const LABEL = '[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?'
const OCTET = '(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)'
const HEX16 = '[0-9A-Fa-f]{1,4}'

/** Days end at 28 for months in general; the longer months are named. 29 February is left out rather than the year checked. */
const FULL_DATE = `(${DATE}|\\d{4}-(0[13-9]|1[0-2])-(29|30)|\\d{4}-(0[13578]|1[02])-31)`

export const STRING_FORMATS: Readonly<Record<string, string>> = {
  date: FULL_DATE,
  time: TIME,
  'date-time': `${FULL_DATE}T${TIME}`,
  duration: 'P((\\d{1,4}Y)?(\\d{1,4}M)?\\d{1,4}D(T\\d{1,4}H)?|T\\d{1,4}[HMS]|\\d{1,4}[YMW])',
  uuid: '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}',
  email: `[A-Za-z0-9_+-]+(\\.[A-Za-z0-9_+-]+)*@${LABEL}(\\.${LABEL})+`,
  hostname: `${LABEL}(\\.${LABEL}){0,6}`,
  ipv4: `${OCTET}(\\.${OCTET}){3}`,
  ipv6: `(${HEX16}:){7}${HEX16}|(${HEX16}:){1,6}:${HEX16}|::(${HEX16})?`,
  uri: `[a-z][a-z0-9+.-]{0,15}://${LABEL}(\\.${LABEL}){0,6}(:\\d{1,4})?(/[A-Za-z0-9._~%!$&'()*+,;=:@-]*)*`,
}
