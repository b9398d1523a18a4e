"""Approve what others have asked for, over plain HTTP. The service runs with LETHE_FOUR_EYES=true.

export LETHE_URL=http://127.0.0.1:8000 LETHE_API_KEY=lethe_...   # a key with the scope jobs:approve
python examples/four_eyes.py                       # what waits for approval
python examples/four_eyes.py approve JOB
python examples/four_eyes.py reject JOB "not the person's own data"
"""

import os
import sys

import httpx

URL = os.environ.get("LETHE_URL", "http://127.0.0.1:8000")


def main() -> None:
    if "LETHE_API_KEY" not in os.environ:
        sys.exit(__doc__)
    headers = {"Authorization": f"Bearer {os.environ['LETHE_API_KEY']}"}
    with httpx.Client(base_url=URL, headers=headers, timeout=30) as http:
        if len(sys.argv) == 1:
            for job in checked(http.get("/jobs", params={"status": "awaiting_approval"}))["data"]:
                print(job["id"], "due", job["due_at"], job["reason"], job["reference"] or "")
            return
        match sys.argv[1:]:
            case ["approve" as action, job]:
                body = None
            case ["reject" as action, job, reason]:
                body = {"reason": reason}
            case _:
                sys.exit(__doc__)
        print(job, "is", checked(http.post(f"/jobs/{job}/{action}", json=body))["status"])


def checked(answer: httpx.Response) -> dict:
    """The answer's JSON. 403: the key may not, or the request is the approver's own. 409: the job is past that."""
    if answer.is_error:
        problem = answer.json()
        sys.exit(f"{answer.status_code} {problem['code']}: {problem['detail']}")
    return answer.json()


if __name__ == "__main__":
    try:
        main()
    except httpx.TransportError as error:
        sys.exit(f"{URL} does not answer: {error}")
