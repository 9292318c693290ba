package simulator

import (
	"net/http"
	"net/url"
	"testing"
	"time"
)

// The vectors are the vendor's published ones, or were computed from its rules for
// the keys testid and testsecret.
func TestMNSSignatureVectors(t *testing.T) {
	t.Parallel()
	const date, date2025, date2017 = "Wed, 08 Mar 2023 12:00:00 GMT", "Tue, 03 Jun 2025 11:23:48 GMT", "Tue, 11 Apr 2017 10:09:19 GMT"
	const handle = "1-ODU4OTkzNDU5My0xNDM1MTk3NjAwLTItNg"
	standard := http.Header{"X-Mns-Version": {"2015-06-06"}, "Content-Type": {"text/xml;charset=UTF-8"}}
	noType := http.Header{"X-Mns-Version": {"2015-06-06"}}
	withMD5 := http.Header{"X-Mns-Version": {"2015-06-06"}, "Content-Type": {"text/xml;charset=UTF-8"}, "Content-Md5": {"ZDQ4ZmIxYWJmM2M3ODdkMDFhYjViOGU3NTM2YjMyYjk="}}
	withDate := http.Header{"X-Mns-Version": {"2015-06-06"}, "X-Mns-Date": {date}}
	for _, v := range []struct {
		secret, method, target, date string
		header                       http.Header
		want                         string
	}{
		{"testsecret", "GET", "/queues/usher-hooks/messages?waitseconds=20", date, standard, "DRZJRnaFJc2zZqvAkegnFWwuSTs="},
		{"testsecret", "GET", "/queues/usher-hooks/messages?waitseconds=20", date, noType, "u6Wyd4x1PJiEc7vMSOnLhaPbiyU="},
		{"testsecret", "GET", "/queues/usher-hooks/messages?numOfMessages=16&waitseconds=20", date, standard, "AApky4f9okw4EjOdLn0CrDCEOsk="},
		{"testsecret", "DELETE", "/queues/usher-hooks/messages?ReceiptHandle=" + handle + "%3D%3D", date, standard, "vV+iFaC/1HIH1XI51u2vfVSKuNc="},
		{"testsecret", "DELETE", "/queues/usher-hooks/messages?ReceiptHandle=" + handle + "==", date, standard, "XHzJcRd9aK/WBw5KYLLzLniihIg="},
		{"testsecret", "PUT", "/queues/usher-hooks/messages?ReceiptHandle=" + handle + "%3D%3D&VisibilityTimeout=120", date, standard, "kICFWbTzzXew8LwQkXpWP3xoEAU="},
		{"testsecret", "POST", "/queues/usher-hooks/messages", date, withMD5, "0bLdQ7stBqc1DlH8oD6F1nuv/Hs="},
		{"testsecret", "GET", "/queues/usher-hooks", date, withDate, "neS8/mlvmvnCUmT7nBIA7OgvxwE="},
		{"sk1", "POST", "/queues/TestQueue", date2025, http.Header{"X-Mns-Abcdef": {"abcDEF"}}, "cAThPWnbphg3hDe3ZHDADTgkgyE="},
		{"testSk", "GET", "/queues/TestQueue", date2025, http.Header{}, "uDJQXbk2xOhH95MDXmgbAGdtyE4="},
		{"ACCESS_KEY_SECRET", "PUT", "/", date2017, http.Header{"Content-Md5": {"574683b3684e3cff610afa155cc2506d"}, "Content-Type": {"text/xml"}, "X-Mns-Version": {"2015-06-06"}}, "A9zehggaYHHujmuRMxGIDrhWwx8="},
	} {
		if got := signMNS(v.secret, v.method, v.target, v.date, v.header); got != v.want {
			t.Errorf("%s %s: signature %s, want %s", v.method, v.target, got, v.want)
		}
	}
	sent, err := time.Parse(http.TimeFormat, date)
	if err != nil {
		t.Fatal(err)
	}
	got := signMNSV4("testsecret", "20230308/cn-hangzhou/mns/aliyun_v4_request", "GET", "/queues/usher-hooks/messages?waitseconds=20", sent, standard)
	if want := "05f95692098971e6d4181aded3a6fc0625f6cade4ef3eeb07ec8cb21ca0ada8a"; got != want {
		t.Errorf("version 4: signature %s, want %s", got, want)
	}
}

func TestRPCSignatureVectors(t *testing.T) {
	t.Parallel()
	common := "AccessKeyId=testid&Timestamp=2023-03-08T12:00:00Z&SignatureNonce=0123456789abcdef0123456789abcdef&RegionId=cn-hangzhou&Format=JSON&SignatureType=&SignatureMethod=HMAC-SHA1&SignatureVersion=1.0&"
	complete := common + "Action=CompleteLifecycleAction&Version=2014-08-28&LifecycleHookId=ash-bp1example&LifecycleActionToken=C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99&LifecycleActionResult=CONTINUE"
	for _, v := range []struct{ method, form, want string }{
		{"POST", complete, "FppyPQH4T0tveibtOcmfNwiLbgY="},
		{"POST", common + "Action=RecordLifecycleActionHeartbeat&Version=2014-08-28&lifecycleHookId=ash-bp1example&lifecycleActionToken=C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99&heartbeatTimeout=600", "4s//jZ9DVVL7cYeZDMGyGDai+7w="},
		{"POST", complete + "&SecurityToken=" + url.QueryEscape("CAIS+/=tok~*en x"), "vXBxlj795JGUJzMlqoYrni6NhFo="},
		{"POST", common + "Action=RemoveBackendServers&Version=2014-05-15&LoadBalancerId=lb-1&BackendServers=" + url.QueryEscape(`[{"ServerId":"i-1","Type":"ecs"}]`), "9TYi7VBxb01DvQf+KiUYPnRRCP0="},
		{"POST", common + "Action=RemoveServersFromServerGroup&Version=2022-04-30&ServerGroupId=sgp-1&Servers.1.Port=80&Servers.1.ServerId=i-1&Servers.1.ServerType=Ecs", "twgN9fVsqk4rOuXJ0+0FpH/wLGg="},
		{"GET", "AccessKeyId=testid&TimeStamp=2014-08-15T11:10:07Z&SignatureNonce=1324fd0e-e2bb-4bb1-917c-bd6e437f1710&RegionId=cn-qingdao&Format=xml&SignatureMethod=HMAC-SHA1&SignatureVersion=1.0&Action=DescribeScalingGroups&Version=2014-08-28", "SmhZuLUnXmqxSEZ/GqyiwGqmf+M="},
	} {
		form, err := url.ParseQuery(v.form)
		if err != nil {
			t.Fatal(err)
		}
		if got, text := signRPC("testsecret", v.method, form); got != v.want {
			t.Errorf("signature %s, want %s, of %s", got, v.want, text)
		}
	}
	if got, want := percentEncode("a b*c+d~e/f:g"), "a%20b%2Ac%2Bd~e%2Ff%3Ag"; got != want {
		t.Errorf("percentEncode gives %s, want %s", got, want)
	}
}
